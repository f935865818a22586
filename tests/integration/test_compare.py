"""``ehm compare`` on encoders whose order is known, and what it keeps, refuses and says."""

import csv
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ehm import backends
from ehm.backends.torch.learners.encoder import TorchEncoder
from ehm.comparison import encoders, meter
from ehm.comparison.candidates import open_candidates
from ehm.comparison.command import compare
from ehm.config import ModelSource, TrainConfig
from ehm.config.inputs import InputSpec
from ehm.errors import CheckpointError, ConfigError
from ehm.models.encoder_file import make_encoder_metadata
from ehm.models.fitting import keep_encoder
from ehm.models.shapes import spec_from_settings
from ehm.tasks.finetune import finetune

MODEL = {"encoder": "vit_tiny", "width": 32, "depth": 1, "heads": 2, "image_size": 32, "patch_size": 8}
FAST = ["folds=3", "repeats=2", "neighbours=5", "workers=0", "scratch_seeds=2"]
RECIPE = """
model: {image_size: 32}
data: {workers: 0, crop_scale: [0.5, 1]}
augment: {rand_augment: null, mixup: 0, cutmix: 0, random_erasing: 0}
layer_decay: 1.0
optim: {epochs: 2, batch_size: 16, base_lr: 0.02, warmup_epochs: 1, dtype: float32}
run: {trackers: []}
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Encoders of one architecture: with random weights, and blind ones, which see every image the same."""
    folder = tmp_path_factory.mktemp("encoders")
    source = ModelSource.model_validate(MODEL)
    metadata = make_encoder_metadata(spec_from_settings(source), InputSpec())
    arrays = {}
    for name, value in TorchEncoder(source, backends.get("cpu").device).model.state_dict().items():
        arrays[name] = value.numpy().copy()
    save_file(arrays, folder / "seeing.safetensors", metadata)
    save_file(arrays | {"norm.bias": arrays["norm.bias"] + 1}, folder / "moved.safetensors", metadata)
    blind = arrays | {"patch_embed.proj.weight": np.zeros_like(arrays["patch_embed.proj.weight"])}
    save_file(blind, folder / "blind.safetensors", metadata)
    shutil.copy(folder / "seeing.safetensors", folder / "copy.safetensors")
    return {path.stem: str(path) for path in folder.iterdir()}


def difference(comparison, number=0):
    return comparison.table.differences[number].figures


def test_a_clearly_better_encoder_is_shown_as_better_and_a_copy_as_the_same(files, stripes, tmp_path, capsys):
    names = [files["blind"], files["seeing"], files["copy"], "scratch"]
    found = compare(names, source=str(stripes), overrides=FAST, device="cpu", out=tmp_path / "out")
    for probe in ("knn", "linear"):
        interval = difference(found)[probe]
        assert interval.mean > 0.1
        assert found.table.rows[0].figures[probe].mean == pytest.approx(0.5)
        # the same arrays by another name
        assert difference(found, 1)[probe] == interval
    assert difference(found)["knn"].is_shown
    assert difference(found)["knn"].mean > 0.3
    again = compare(names[1:3], source=str(stripes), overrides=FAST, device="cpu", out=tmp_path / "out")
    for probe in ("knn", "linear"):
        assert (difference(again)[probe].mean, difference(again)[probe].half) == (0.0, 0.0)
    said = capsys.readouterr().out
    assert f"k-NN: {files['seeing']} is better than {files['blind']} (AUC +" in said
    assert f"k-NN: {files['copy']} and {files['seeing']} are the same everywhere" in said
    assert "each of 3 stratified folds is held out once, 2 times" in said
    assert "scratch, mean of 2 seeds" in said

    written = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert written["figure"] == "auc"
    assert written["differences"][0]["figures"]["knn"]["mean"] == 0.0
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["encoder"] for row in rows} == set(names[1:3])
    assert len(rows) == 2 * 2 * 6 * 3  # encoders, probes, splits, figures
    assert "| compared with |" in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "chart.png").is_file()


def test_shuffled_labels_show_no_difference(files, stripes, tmp_path, capsys):
    pictures = sorted(stripes.rglob("*.png"))
    for place, number in enumerate(np.random.default_rng(1).permutation(len(pictures)).tolist()):
        folder = tmp_path / "shuffled" / ("one" if place % 2 else "two")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures[number], folder / f"{number}.png")
    names = [files["blind"], files["seeing"]]
    found = compare(names, source=str(tmp_path / "shuffled"), overrides=FAST, device="cpu", out=tmp_path / "out")
    assert not difference(found)["knn"].is_shown
    assert "is not shown (AUC" in capsys.readouterr().out


def test_what_was_measured_is_kept_and_an_interrupted_comparison_goes_on(files, stripes, tmp_path, monkeypatch):
    names = [files["blind"], files["seeing"]]
    settings = {"source": str(stripes), "overrides": FAST, "device": "cpu", "out": tmp_path / "out"}
    calls = []
    answer = encoders.probe_split

    def count(*args):
        calls.append(args)
        if len(calls) == 9 and not (tmp_path / "stopped").exists():  # of 24: 2 encoders, 2 probes, 6 splits
            (tmp_path / "stopped").touch()
            raise KeyboardInterrupt
        return answer(*args)

    monkeypatch.setattr(encoders, "probe_split", count)
    with pytest.raises(KeyboardInterrupt):
        compare(names, **settings)
    assert not (tmp_path / "out" / "table.md").exists()
    found = compare(names, **settings)
    assert len(calls) == 24 + 1
    whole = compare(names, **{**settings, "out": tmp_path / "whole"})
    assert found.table == whole.table

    def refuse(*args):
        raise AssertionError("features are computed again")

    monkeypatch.setattr(TorchEncoder, "compute_features", refuse)
    calls.clear()
    assert compare(names, **settings).table == found.table
    # another figure and more neighbours need no features anew
    assert compare(names, **settings, figure="top1").table.figure == "top1"
    assert not calls
    compare(names, **{**settings, "overrides": [*FAST[:2], "neighbours=7", *FAST[3:]]})
    assert len(calls) == 12
    calls.clear()
    # weights of other content are another encoder, whatever their name
    shutil.copy(files["moved"], tmp_path / "changing.safetensors")
    with pytest.raises(AssertionError, match="computed again"):
        compare([str(tmp_path / "changing.safetensors")], **settings)


def test_the_time_left_counts_features_apart_from_splits_and_leaves_out_what_is_kept(
    files, stripes, tmp_path, monkeypatch, capsys
):
    clock = [0.0]
    monkeypatch.setattr(meter, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    answer = encoders.probe_split
    extract = encoders.extract_features

    def answer_slowly(*args):
        clock[0] += 40
        return answer(*args)

    def extract_slowly(*args):
        clock[0] += 600
        return extract(*args)

    monkeypatch.setattr(encoders, "probe_split", answer_slowly)
    monkeypatch.setattr(encoders, "extract_features", extract_slowly)
    settings = {"source": str(stripes), "overrides": [*FAST, "probes=[knn]"], "device": "cpu", "out": tmp_path / "out"}
    compare([files["blind"], files["seeing"], files["copy"]], **settings)
    said = capsys.readouterr().out
    # the copy has the features and answers of what it is a copy of; 6 splits of each of the others
    assert "  2 of 14 steps, " in said
    left = {line.split()[0]: line.split()[-1] for line in said.splitlines() if "ETA" in line}
    assert left["2"] == "17:20"  # 11 splits of 40 s, and 600 s for the features of the second
    assert left["9"] == "3:20"  # 5 splits of the second
    # an encoder more: the others are not measured again
    compare([files["moved"], files["blind"], files["seeing"]], **settings)
    said = capsys.readouterr().out
    left = {line.split()[0]: line.split()[-1] for line in said.splitlines() if "ETA" in line}
    assert left["2"] == "3:20"
    assert "  2 of 7 steps, " in said


def test_fine_tuning_is_compared_too(files, stripes, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    overrides = [*FAST, f"recipe={tmp_path / 'recipe.yaml'}", "probes=[knn]"]
    settings = {"source": str(stripes), "overrides": overrides, "device": "cpu", "out": tmp_path / "out"}
    found = compare([files["seeing"], "scratch"], finetune=True, **settings)
    assert list(found.table.measures) == ["knn", "finetune"]
    for row in found.table.rows:
        assert 0 <= row.figures["finetune"].mean <= 1
        assert row.figures["finetune"].count == 3
    assert not (tmp_path / "out" / "finetune").exists()
    # an encoder that has seen the labels would look better than it is
    tuned = finetune(
        tmp_path / "recipe.yaml",
        device="cpu",
        overrides=[f"model.init={files['seeing']}", f"data.source={stripes}"],
        out=tmp_path / "tuned",
    )
    with pytest.raises(ConfigError, match=r"was trained with the labels of 38 of the 48 images to measure on"):
        compare([files["seeing"], str(tuned.out)], **settings)


def test_a_validation_part_of_its_own_is_measured(files, stripes, tmp_path, capsys):
    for part, numbers in (("train", range(16)), ("val", range(16, 24))):
        for kind in ("across", "down"):
            (tmp_path / "parts" / part / kind).mkdir(parents=True)
            for number in numbers:
                shutil.copy(stripes / kind / f"{number:02d}.png", tmp_path / "parts" / part / kind)
    names = [files["blind"], files["seeing"], files["copy"]]
    found = compare(names, source=str(tmp_path / "parts"), overrides=FAST, device="cpu", out=tmp_path / "out")
    assert difference(found)["knn"].is_shown
    assert found.table.rows[1].figures["knn"] == found.table.rows[2].figures["knn"]
    said = capsys.readouterr().out
    assert "32 of its 32 training images, measured on 16 of its 16 validation images" in said
    assert "over the choice of test" in said


@pytest.mark.parametrize(
    ("names", "settings", "error", "message"),
    [
        ([], {}, ConfigError, "encoders: none is named; give runs"),
        (["runs/none"], {}, CheckpointError, "^runs/none: no such file or folder"),
        (["timm:vit_smal"], {}, ConfigError, "^timm:vit_smal: timm .* has no such model"),
        (["scratch"], {}, ConfigError, "scratch: takes the architecture of the first other encoder"),
        (["runs/a", "runs/a"], {}, ConfigError, "runs/a: is named twice"),
        (["a"], {"overrides": ["folds=1"]}, ConfigError, "folds"),
        (["a"], {"overrides": ["fold=1"]}, ConfigError, "fold: unknown key"),
        (["a"], {"figure": "auc", "seeds": [1]}, ConfigError, "--seeds: is for studies, which --train names"),
        (["a"], {"train": "studies/elpv"}, ConfigError, "a: --train compares the arms of studies/elpv"),
        ([], {"train": "studies/elpv", "figure": "auc"}, ConfigError, "--figure: is for encoders that are there"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(names, settings, error, message, stripes, tmp_path):
    if "train" not in settings:
        settings = {"source": str(stripes), **settings}
    with pytest.raises(error, match=message):
        compare(names, device="cpu", out=tmp_path / "out", **settings)
    assert not (tmp_path / "out" / "table.md").exists()


def test_scratch_is_what_a_pretraining_run_begins_with(files, stripes, tmp_path):
    compare([files["seeing"], "scratch"], source=str(stripes), overrides=FAST, device="cpu", out=tmp_path / "out")
    values = {
        "encoder": "vit_tiny",
        "image_size": 32,
        "patch_size": 8,
        "model": {"width": 32, "depth": 1, "heads": 2, "decoder_depth": 1},
        "run": {"seed": 1},
    }
    begun = backends.get("cpu").create_learner(TrainConfig.model_validate(values)).state().model
    arrays = load_file(tmp_path / "out" / "scratch" / "seed-1.safetensors")
    assert set(arrays) == set(load_file(files["seeing"]))
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, begun[name])


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "simmim", "mask": {"unit": 8}},  # with relative positions
        {"model": {"width": 32, "depth": 2, "heads": 2, "form": {"registers": 2, "layer_scale": True}}},
        {
            "objective": "simmim",
            "encoder": "swin_tiny",
            "image_size": 64,
            "patch_size": 4,
            "model": {"width": 16, "depth": [1, 1, 1, 1], "heads": [1, 1, 2, 2]},
        },
    ],
    ids=["relative", "registers", "swin"],
)
def test_every_encoder_has_an_untrained_one_like_it(changes, tmp_path):
    values = {"encoder": "vit_tiny", "image_size": 32, "patch_size": 8, "model": {"width": 32, "depth": 2, "heads": 2}}
    config = TrainConfig.model_validate({**values, **changes})
    backend = backends.get("cpu")
    arrays = keep_encoder(backend.create_learner(config).state().model, config.spec.blocks)
    inputs = InputSpec((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    save_file(arrays, tmp_path / "first.safetensors", make_encoder_metadata(config.spec, inputs))
    names = [str(tmp_path / "first.safetensors"), "scratch"]
    _, scratch = open_candidates(names, backend, tmp_path, scratch_seeds=2)
    assert len({member.weights for member in scratch.members}) == 2
    for member in scratch.members:
        weights = backend.open_weights(ModelSource(init=member.init))
        assert weights.spec == config.spec
        assert weights.provenance.inputs == inputs
