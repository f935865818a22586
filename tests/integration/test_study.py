"""A study: runs of ``ehm train`` side by side, what is missing of them, and tables that travel."""

import json

import pytest
import yaml
from tiny import RUN, TINY

from ehm.comparison import side_by_side
from ehm.comparison.command import compare
from ehm.comparison.results import RunKey, read_results_table, save_result, write_results_table
from ehm.comparison.study import choose_runs, gather_results, list_devices, open_study
from ehm.comparison.study_run import carry_out, run_folder
from ehm.comparison.study_table import tabulate_study
from ehm.errors import ConfigError, DataError, TrainingError
from ehm.training.pretrain import train

SHORT = {**TINY, **RUN, "optim.warmup_epochs": 0, "optim.batch_size": 8, "objective": "mae"}
MEASURE = {"folds": 2, "repeats": 1, "neighbours": 3, "probes": ["knn"]}


def write_study(folder, stripes, arms, seeds=(0,), **changes):
    """Write a study of tiny runs on the stripes, and return its path."""
    values = {
        "overrides": [f"{key}={value}" for key, value in {**SHORT, "data.source": stripes, "optim.steps": 2}.items()],
        "arms": arms,
        "seeds": list(seeds),
        "measure": {**MEASURE, "source": str(stripes)},
        **changes,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return str(path)


def test_what_is_missing_is_trained_a_failed_arm_is_reported_and_the_others_go_on(stripes, tmp_path, capsys):
    arms = {
        "random": ["masking=random"],
        "wrong": ["masking=random", "mask.blocks=0"],
        "more": {"title": "more of it", "start": "random", "overrides": ["masking=evolved"]},
        "never": {"start": "wrong", "overrides": ["masking=random"]},
    }
    out = tmp_path / "out"
    study = write_study(tmp_path, stripes, arms)
    with pytest.raises(TrainingError, match=r"2 runs failed; .*wrong, seed 0: .*mask.blocks.*never, seed 0: not run"):
        compare(train=study, device="cpu", jobs=2, out=out)
    said = capsys.readouterr().out
    assert "more, seed 0: done" in said
    assert "2 of 4 runs have no result yet" in said
    # plain runs, in their places
    for name in ("random", "more"):
        assert (out / "runs" / name / "seed-0" / "encoder.safetensors").is_file()
        result = json.loads((out / "results" / name / "seed-0.json").read_text())
        assert {"knn", "knn.top1", "loss", "minutes"} <= set(result["measures"])
    assert "begins with the weights of" in (out / "logs" / "more" / "seed-0.log").read_text()
    table = (out / "table.md").read_text()
    assert "| more of it | 1 |" in table
    assert "cannot be told from one value each" in table

    # nothing that is there is done again
    written = (out / "results" / "random" / "seed-0.json").stat().st_mtime_ns
    found = compare(train=study, device="cpu", out=out, arms=["more"])
    assert [row.name for row in found.table.rows] == ["random", "more of it"]
    assert (out / "results" / "random" / "seed-0.json").stat().st_mtime_ns == written


def test_a_complete_run_is_measured_and_not_trained(stripes, tmp_path, capsys):
    arms = {"random": ["masking=random"], "grid": ["masking=grid"]}
    file = write_study(tmp_path, stripes, arms, base="elpv/pretrain")
    study = open_study(file)
    run = RunKey("random", 0)
    folder = run_folder(tmp_path / "out", run)
    overrides = [*study.overrides, "masking=random", "run.seed=0"]
    train("elpv/pretrain", device="cpu", overrides=overrides, out=folder)
    written = (folder / "encoder.safetensors").stat().st_mtime_ns
    found = compare(train=file, device="cpu", out=tmp_path / "out", measure_only=True, jobs=1)
    assert [row.name for row in found.table.rows] == ["random"]
    assert (folder / "encoder.safetensors").stat().st_mtime_ns == written
    # the arm says something else than was trained
    (tmp_path / "other").mkdir()
    changed = {"random": ["masking=random", "mask.ratio=0.5"]}
    other = write_study(tmp_path / "other", stripes, changed, base="elpv/pretrain")
    with pytest.raises(ConfigError, match=r"random/seed-0: .*mask.ratio was 0.75 and is 0.5; set in the study"):
        compare(train=other, device="cpu", out=tmp_path / "out", measure_only=True)
    # a run that was stopped goes on
    grid = run_folder(tmp_path / "out", RunKey("grid", 0))
    overrides = [*study.overrides, "masking=grid", "run.seed=0", "run.checkpoint_every=0.1"]
    train("elpv/pretrain", device="cpu", overrides=[*overrides, "run.max_steps=1"], out=grid)
    capsys.readouterr()
    carry_out(study, RunKey("grid", 0), tmp_path / "out", "cpu")
    # the time left goes by what such a run prints
    log = tmp_path / "seed-0.log"
    log.write_text(capsys.readouterr().out)
    shares = side_by_side._read_shares(log)
    assert (shares.done, shares.resumed) == (1, 0.5)
    assert sorted(path.name for path in (grid / "checkpoints").iterdir()) == ["step-00000001", "step-00000002"]
    assert len(compare(train=file, device="cpu", out=tmp_path / "out", measure_only=True).table.rows) == 2


@pytest.fixture
def study(stripes, tmp_path):
    arms = {"a": ["masking=random"], "b": {"overrides": [], "seeds": [0, 1, 2, 3]}, "c": {"against": ["a", "b"]}}
    return open_study(write_study(tmp_path, stripes, arms, seeds=(0, 1, 2)))


def test_results_travel_as_a_table_and_newer_ones_win(study, tmp_path):
    runs = choose_runs(study, None, None)
    assert [str(run) for run in runs[:4]] == ["a, seed 0", "b, seed 0", "c, seed 0", "a, seed 1"]
    assert len(runs) == 10
    results = {run: {"knn": 0.5 + run.seed / 100, "minutes": 1.5} for run in runs[:6]}
    table = write_results_table(tmp_path / "there.csv", {**results, RunKey("x", 7): {"knn": 0.1}})
    assert read_results_table(table, runs) == results
    save_result(tmp_path / "out", runs[0], {"knn": 0.75}, study)
    found = gather_results(study, runs, tmp_path / "out", [table])
    assert list(found) == runs[:6]
    assert found[runs[0]] == {"knn": 0.75}
    assert found[runs[1]] == results[runs[1]]
    (tmp_path / "bad.csv").write_text("arm,seed,measure,value\na,0,knn,many\n")
    with pytest.raises(DataError, match=r"bad.csv: line 2: expected a whole number as seed and a number as value"):
        read_results_table(tmp_path / "bad.csv", runs)
    with pytest.raises(DataError, match=r"--results .*none.csv: cannot be read"):
        read_results_table(tmp_path / "none.csv", runs)


def test_only_runs_of_other_studies_are_said_to_be_left_aside(study, tmp_path, capsys):
    runs = choose_runs(study, None, None)
    table = write_results_table(tmp_path / "there.csv", {run: {"knn": 0.5} for run in [*runs, RunKey("x", 7)]})
    chosen = choose_runs(study, ["a"], [0])
    assert list(gather_results(study, chosen, tmp_path / "out", [table])) == chosen
    assert "1 runs are none of this study (x, seed 7, ...)" in " ".join(capsys.readouterr().out.split())


def test_differences_are_paired_by_seed(study):
    values = {"a": [0.5, 0.6, 0.7], "b": [0.51, 0.612, 0.711, 0.9], "c": [0.4, 0.5, 0.6]}
    results = {}
    for arm, found in values.items():
        for seed, value in enumerate(found):
            results[RunKey(arm, seed)] = {"knn": value}
    table = tabulate_study(study, results, "top1")
    assert [(each.name, each.against) for each in table.differences] == [("b", "a"), ("c", "a"), ("c", "b")]
    first = table.differences[0].figures["knn"]
    assert first.mean == pytest.approx(0.011)
    assert first.is_shown
    # the arms themselves differ by far less than their seeds
    assert table.rows[0].figures["knn"].half > 0.2
    assert "k-NN: b is better than a (top-1 accuracy +0.011 ± 0.002)." in table.to_markdown()
    assert table.rows[1].cells["seeds"] == "4"


def test_another_way_to_measure_measures_complete_runs_again(study, tmp_path):
    run = RunKey("a", 0)
    save_result(tmp_path, run, {"knn": 0.5}, study)
    assert gather_results(study, [run], tmp_path, []) == {run: {"knn": 0.5}}
    measure = study.measure[0].model_copy(update={"neighbours": 4})
    other = study.model_copy(update={"measure": (measure,)})
    with pytest.raises(ConfigError, match="was measured otherwise than the section measure says now"):
        gather_results(other, [run], tmp_path, [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {}}, "arms: names none"),
        ({"arms": {"a/b": []}}, "the arm 'a/b' gives folders their name"),
        ({"arms": {"a": {"against": "b"}}}, "there is no other arm b"),
        ({"arms": {"a": {"start": "b"}, "b": {"start": "a"}}}, "starts from itself"),
        ({"seeds": [1, 1]}, "one seed stands there twice"),
        ({"measure": []}, "measure: is missing"),
        ({"measure": [MEASURE, MEASURE]}, "give each of several measurements a name"),
        ({"measure": {"probes": ["knn", "knn"]}}, "one is named twice"),
        ({"seed": 1}, "seed: unknown key"),
    ],
)
def test_a_file_that_makes_no_study_is_refused(changes, message, stripes, tmp_path):
    with pytest.raises(ConfigError, match=message):
        open_study(write_study(tmp_path, stripes, **{"arms": {"a": ["masking=random"]}, **changes}))


def test_runs_are_chosen_by_names_that_exist(study):
    assert choose_runs(study, ["b"], [3]) == [RunKey("b", 3)]
    with pytest.raises(ConfigError, match="--arms d: no such arm; the arms are a, b, c"):
        choose_runs(study, ["d"], None)
    with pytest.raises(ConfigError, match="--seeds 9: no arm has this seed; the seeds are 0, 1, 2, 3"):
        choose_runs(study, None, [9])


def test_processors_are_shared_out():
    assert list_devices("cpu", 3, 2) == ["cpu", "cpu"]
    with pytest.raises(ConfigError, match="--jobs 0: should be 1 or more"):
        list_devices("cpu", 0, 2)
