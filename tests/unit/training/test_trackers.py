"""Trackers of a run: what they are told, runs that are resumed, and trackers that fail, hang or are not installed."""

import json
import os
import struct
import subprocess
import sys
import time
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from fake_learner import FakeBackend
from full_disk import full_disk
from PIL import Image

from ehm import backends, plugins
from ehm.cli import main
from ehm.config import TrainConfig, load_config
from ehm.errors import ConfigError
from ehm.storage.checkpoint import open_checkpoint
from ehm.training.runlog import RunLog
from ehm.training.trackers import process, registry

TESTS = Path(__file__).parents[2]
TINY = ["encoder=vit_tiny", "image_size=32", "patch_size=8", "optim.batch_size=4", "optim.epochs=2", "data.workers=0"]
TINY += ["run.log_every=1", "optim.warmup_epochs=0"]
GONE = "gets no more figures of this run, which goes on without it: "


@pytest.fixture
def lines(monkeypatch):
    """The tracker of tests/example_tracker, on the search path as if it were installed."""
    monkeypatch.syspath_prepend(str(TESTS / "example_tracker"))
    monkeypatch.setattr(backends, "get", lambda device, deterministic=False: FakeBackend())


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def train(images, out, *settings, resume=False):
    arguments = ["train", "--out", str(out), *(f"--set={value}" for value in settings)]
    if resume:
        return main([*arguments, "--resume"])
    return main([*arguments, f"--set=data.source={images}", *(f"--set={value}" for value in TINY)])


def log_steps(folder, trackers, steps=3, first=0, **options):
    with RunLog(folder, 10, first, trackers=trackers, **options) as log:
        for step in range(first + 1, first + steps + 1):
            log.log(step, {"loss": 1 / step, "odd": float("nan")})
    return read_lines(folder / "metrics.jsonl")


def test_another_package_adds_a_tracker(lines, images, tmp_path, capsys):
    out = tmp_path / "runs" / "mine"
    assert train(images, out, "run.trackers=[lines]", "run.max_steps=4") == 0
    assert "lines: file:lines.jsonl\n" in capsys.readouterr().out
    started, *calls, finished = read_lines(out / "lines.jsonl")
    logged = [call for call in calls if call["call"] == "log"]
    assert (started["name"], started["first_step"], started["id"]) == ("runs/mine", 0, None)
    assert started["settings"]["optim.batch_size"] == 4
    assert started["settings"]["image_size"] == "[32, 32]"
    assert started["settings"]["model.init"] == "null"
    assert [{"step": line["step"], **line["values"]} for line in logged] == read_lines(out / "metrics.jsonl")
    page = out / "pictures" / "reconstruction-00000004.png"
    shown = {"call": "add_picture", "step": 4, "name": "reconstruction", "size": page.stat().st_size}
    assert shown in calls
    assert finished == {"call": "finish", "status": "finished"}
    assert json.loads((out / "trackers" / "lines.json").read_text()) == {"id": "run-1", "address": "file:lines.jsonl"}
    said = (out / "trackers" / "lines.log").read_text()
    assert said == "printed by the library\ncomplained by the library\n"

    (out / "lines.jsonl").unlink()
    assert train(images, out, "run.max_steps=null", resume=True) == 0
    started, *calls, _ = read_lines(out / "lines.jsonl")
    assert (started["first_step"], started["id"]) == (4, "run-1")
    assert [call["step"] for call in calls if call["call"] == "log"] == [5, 6]


def test_trackers_change_no_weight(lines, images, tmp_path):
    assert train(images, tmp_path / "none", "run.trackers=[]") == 0
    assert train(images, tmp_path / "two", "run.trackers=[tensorboard, lines]") == 0
    alone = open_checkpoint(tmp_path / "none").state.model
    tracked = open_checkpoint(tmp_path / "two").state.model
    np.testing.assert_array_equal(tracked["weight"], alone["weight"])


def test_a_new_run_does_not_go_on_in_the_tracker(lines, tmp_path):
    log_steps(tmp_path, ["lines"])
    log_steps(tmp_path, ["lines"])
    assert [line["id"] for line in read_lines(tmp_path / "lines.jsonl") if line["call"] == "start"] == [None, None]
    # nor one whose id cannot be read any more
    (tmp_path / "trackers" / "lines.json").write_text("{")
    log_steps(tmp_path, ["lines"], first=3)
    assert read_lines(tmp_path / "lines.jsonl")[-5]["id"] is None


def test_pictures_are_passed_on(lines, tmp_path):
    page = tmp_path / "page.png"
    Image.new("RGB", (6, 4), "red").save(page)
    with RunLog(tmp_path, 10, trackers=["lines"]) as log:
        log.add_picture(2, "reconstruction", page)
    added = read_lines(tmp_path / "lines.jsonl")[1]
    assert added == {"call": "add_picture", "step": 2, "name": "reconstruction", "size": page.stat().st_size}


@pytest.mark.parametrize(
    ("error", "status"), [(None, "finished"), (KeyError(), "failed"), (KeyboardInterrupt(), "stopped")]
)
def test_a_tracker_is_told_how_the_run_ended(lines, tmp_path, error, status):
    try:
        with RunLog(tmp_path, 10, trackers=["lines"]):
            if error is not None:
                raise error
    except (KeyError, KeyboardInterrupt):
        pass
    assert read_lines(tmp_path / "lines.jsonl")[-1]["status"] == status


def test_a_run_that_is_killed_is_ended_in_the_tracker(lines, tmp_path):
    description = {"name": "a", "folder": str(tmp_path), "settings": {}, "first_step": 0}
    (tmp_path / "trackers").mkdir()
    calls = [{"call": "start", "tracker": "lines", "run": description}, {"call": "log", "step": 1, "values": {}}]
    done = subprocess.run(
        [sys.executable, "-m", "ehm.training.trackers.worker"],
        input="".join(json.dumps(call) + "\n" for call in calls),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == '{"address": "file:lines.jsonl"}\n'
    assert read_lines(tmp_path / "lines.jsonl")[-1] == {"call": "finish", "status": "stopped"}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("start:raise", "ConnectionError: the server has gone ("),
        ("log:raise", "ConnectionError: the server has gone ("),
        ("finish:raise", "ConnectionError: the server has gone ("),
        ("log:end", "its process ended with status 7 ("),
    ],
)
def test_a_tracker_that_fails_costs_one_line(lines, images, tmp_path, monkeypatch, capsys, fault, reason):
    monkeypatch.setenv("EXAMPLE_TRACKER", fault)
    out = tmp_path / "out"
    assert train(images, out, "run.trackers=[lines, tensorboard]") == 0
    said = capsys.readouterr().out
    assert said.count(GONE) == 1
    assert f"lines {GONE}{reason}{out}/trackers/lines.log)\n" in said
    assert len(read_lines(out / "metrics.jsonl")) == 6
    assert (out / "encoder.safetensors").is_file()
    if reason.startswith("Connection"):
        assert "Traceback" in (out / "trackers" / "lines.log").read_text()


def test_a_failure_is_told_of_while_the_run_goes_on(lines, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EXAMPLE_TRACKER", "start:raise")
    step = 0
    with RunLog(tmp_path, 1000, trackers=["lines"]) as log:
        while GONE not in capsys.readouterr().out:
            step += 1
            log.log(step, {"loss": 1.0})
            time.sleep(0.05)
        log.log(step + 1, {"loss": 1.0})
    assert GONE not in capsys.readouterr().out
    assert len(read_lines(tmp_path / "metrics.jsonl")) == step + 1


@pytest.mark.parametrize(
    ("fault", "most_waiting", "reason"),
    [
        ("finish:hang", 100, "it had not sent everything 0.5 seconds after the end ("),
        ("log:hang", 100, "it had not sent everything 0.5 seconds after the end ("),
        ("log:hang", 5, "it takes nothing, and 5 lines wait ("),
    ],
)
def test_a_tracker_that_hangs_does_not_hold_the_run_up(
    lines, tmp_path, monkeypatch, capsys, fault, most_waiting, reason
):
    monkeypatch.setenv("EXAMPLE_TRACKER", fault)
    monkeypatch.setattr(process, "_FINISH_SECONDS", 0.5)
    monkeypatch.setattr(process, "_MOST_WAITING", most_waiting)
    started = []
    monkeypatch.setattr(process.subprocess, "Popen", remember(process.subprocess.Popen, started))
    # more than a pipe holds
    long_name = "x" * 10_000
    with RunLog(tmp_path, 50, trackers=["lines"]) as log:
        for step in range(50):
            log.log(step, {long_name: 1.0})
    assert capsys.readouterr().out.count(f"lines {GONE}{reason}") == 1
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 50
    assert started[0].poll() is not None


def remember(make, made):
    def make_and_remember(*arguments, **options):
        made.append(make(*arguments, **options))
        return made[-1]

    return make_and_remember


def test_tensorboard_on_a_full_disk_is_no_exception(tmp_path, capsys):
    page = tmp_path / "page.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(page)
    with RunLog(tmp_path, 10, trackers=["tensorboard"]) as log:
        log.log(1, {"loss": 1.0})
        with full_disk(2000):
            log.add_picture(1, "page", page)
            log.log(2, {"loss": 0.5})
        log.log(3, {"loss": 0.25})
    said = capsys.readouterr().out
    assert said.count(GONE) == 1
    assert f"tensorboard {GONE}{tmp_path}/tensorboard: cannot be written: File too large\n" in said
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def read_events(folder):
    from tensorboardX.proto.event_pb2 import Event

    (file,) = folder.iterdir()
    content = file.read_bytes()
    events = []
    while content:  # TFRecord: length, its checksum, the event, its checksum
        (length,) = struct.unpack("<Q", content[:8])
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return events


def test_curves_are_tensorboards_records(tmp_path):
    from tensorboardX.proto.event_pb2 import SessionLog

    page = tmp_path / "page.png"
    Image.new("RGB", (6, 4), "red").save(page)
    with RunLog(tmp_path, 10, first_step=3, trackers=["tensorboard"]) as log:
        log.log(4, {"loss": 0.5, "lr": 0.25})
        log.add_picture(4, "page", page)
    version, start, values, picture = read_events(tmp_path / "tensorboard")
    assert version.file_version == "brain.Event:2"
    # hides what an earlier attempt wrote
    assert (start.step, start.session_log.status) == (3, SessionLog.START)
    assert values.step == picture.step == 4
    assert {value.tag: value.simple_value for value in values.summary.value} == {"loss": 0.5, "lr": 0.25}
    (shown,) = picture.summary.value
    assert (shown.tag, shown.image.width, shown.image.height, shown.image.colorspace) == ("page", 6, 4, 3)
    assert shown.image.encoded_image_string == page.read_bytes()


def test_a_silent_log_starts_no_tracker(lines, tmp_path):
    with RunLog(tmp_path, 10, trackers=["lines", "tensorboard"], silent=True) as log:
        log.log(1, {"loss": 1.0})
        log.add_picture(1, "page", tmp_path / "page.png")
    assert list(tmp_path.iterdir()) == []


def test_unknown_trackers_are_told_the_known_ones(images, tmp_path, capsys, lines):
    assert train(images, tmp_path / "out", "run.trackers=[tensorbord]") == 2
    error = capsys.readouterr().err
    known = "known are tensorboard, wandb, mlflow, swanlab, lines"
    assert error == f"ehm train: run.trackers tensorbord: unknown; {known} (did you mean tensorboard?)\n"
    assert not (tmp_path / "out").exists()


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"run\.trackers mlflow: .* not installed; pip install .*\[mlflow\]' inst"):
        registry.check_trackers(["tensorboard", "mlflow"])


def test_two_packages_cannot_claim_one_tracker(monkeypatch):
    monkeypatch.setattr(plugins, "entry_points", lambda group: [EntryPoint("mlflow", "nowhere:Tracker", group)])
    with pytest.raises(ConfigError, match=r"run\.trackers mlflow: is claimed twice, by ehm\.training.* by nowhere:Tra"):
        registry.check_trackers(["mlflow"])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("mlflow", "run.trackers: should be a list, not 'mlflow'"),
        ("[mlflow, mlflow]", "run: trackers names mlflow twice"),
    ],
)
def test_trackers_are_a_list_of_different_names(value, reason):
    with pytest.raises(ConfigError) as refused:
        load_config(TrainConfig, None, [f"run.trackers={value}"])
    assert str(refused.value) == f"--set: {reason}"


@pytest.mark.parametrize(("value", "expected", "named"), [(False, (), "[]"), (True, ("tensorboard",), "[tensorboard]")])
def test_the_key_of_earlier_versions_is_read(tmp_path, capsys, monkeypatch, value, expected, named):
    monkeypatch.setattr("ehm.config.renamed._warned", set())
    note = f"run.tensorboard is now called run.trackers; taking run.trackers={named}. ehm 0.3 is the last to read"
    file = tmp_path / "a.yaml"
    file.write_text(f"run:\n  tensorboard: {str(value).lower()}\n")
    # nobody wrote what a checkpoint keeps
    stored = {"run": {"tensorboard": value, "seed": 3}}
    assert load_config(TrainConfig, stored).run.trackers == expected
    assert TrainConfig.model_validate(stored).run.trackers == expected
    assert load_config(TrainConfig, stored, ["run.trackers=[mlflow]"]).run.trackers == ("mlflow",)
    assert stored == {"run": {"tensorboard": value, "seed": 3}}
    assert capsys.readouterr().err == ""
    assert load_config(TrainConfig, file).run.trackers == expected
    assert capsys.readouterr().err == f"{file}: {note} the old name\n"
    assert load_config(TrainConfig, None, [f"run.tensorboard={str(value).lower()}"]).run.trackers == expected
    assert capsys.readouterr().err == ""  # once is enough
    with pytest.raises(ConfigError, match="tensorboard should be true or false, not 5"):
        load_config(TrainConfig, None, ["run.tensorboard=5"])


def test_a_run_of_an_earlier_version_is_resumed_without_a_change(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(backends, "get", lambda device, deterministic=False: FakeBackend())
    out = tmp_path / "out"
    assert train(images, out, "run.trackers=[]", "run.max_steps=4") == 0
    state = out / "checkpoints" / "step-00000004" / "state.json"
    metadata = json.loads(state.read_text())
    del metadata["config"]["run"]["trackers"]
    metadata["config"]["run"]["tensorboard"] = False
    state.write_text(json.dumps(metadata))
    capsys.readouterr()
    assert train(images, out, "run.max_steps=4", resume=True) == 0
    said = capsys.readouterr().out
    assert "continuing step-00000004" in said
    assert "changed since then" not in said
