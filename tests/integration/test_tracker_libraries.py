"""Trackers by their own libraries: MLflow on a real server, Weights & Biases and SwanLab in the files of offline runs.

`make test` runs this file in an environment of its own, which has the libraries.
"""

import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from fake_learner import FakeBackend
from PIL import Image
from ports import free_port

from ehm import backends
from ehm.cli import main
from ehm.training.runlog import RunLog
from ehm.training.trackers import process as tracker_process

pytestmark = pytest.mark.timeout(900)  # MLflow's server imports for half a minute on a busy machine
TINY = ["encoder=vit_tiny", "image_size=32", "patch_size=8", "optim.batch_size=4", "optim.epochs=2", "data.workers=0"]
TINY += ["run.log_every=1", "optim.warmup_epochs=0", "run.checkpoint_every=1"]
SETTINGS = {"optim.base_lr": 0.5, "data.mean": "[0.5, 0.4, 0.3]", "masking": "evolved"}
LOG_BLOCK = 32768
LOG_FULL = 1
LOG_LAST = 4


@pytest.fixture(autouse=True)
def no_questions_to_the_net(monkeypatch, tmp_path):
    """No library reads this user's accounts, writes beside the tests or asks a server outside this machine."""
    # a machine that is busy with other tests is no failure of a tracker
    monkeypatch.setattr(tracker_process, "_FINISH_SECONDS", 600.0)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in [*os.environ]:
        if name.startswith(("MLFLOW_", "WANDB_", "SWANLAB_")):
            monkeypatch.delenv(name)


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.png"
    Image.new("RGB", (6, 4), "red").save(path)
    return path


def log_steps(folder, tracker, first, last, page):
    """Log steps after ``first`` up to ``last``, and a picture after the last; a resumed run has other settings."""
    settings = SETTINGS | {"run.max_steps": last}
    with RunLog(folder, 10, first, trackers=[tracker], settings=settings) as log:
        for step in range(first + 1, last + 1):
            log.log(step, {"loss": 1 / step, "lr": 0.5 * step})
        log.add_picture(last, "reconstruction", page)


# MLflow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of MLflow with its database, as a process: what it is, its address and what it says."""
    pytest.importorskip("mlflow", reason="mlflow is not installed here: make test runs this in .venv-trackers")
    pytest.importorskip("sqlalchemy", reason="MLflow's server needs it: make test runs this in .venv-trackers")
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/runs.db", "--artifacts-destination", str(folder / "files")]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env={**os.environ, **quiet}, start_new_session=True
        )
    try:
        wait_for(port, process, folder / "log.txt")
        yield process, f"http://127.0.0.1:{port}"
    finally:
        stop(process)


def wait_for(port, process, log):
    while process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    pytest.fail(f"the server ended: {log.read_text()[-2000:]}")


def stop(process):
    with suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


def ask(address, endpoint, /, **values):
    """Ask the server itself, and not its client."""
    import requests

    answer = requests.get(f"{address}/api/2.0/mlflow/{endpoint}", params=values, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def get_history(address, run, key):
    found = ask(address, "metrics/get-history", run_id=run, metric_key=key)["metrics"]
    return [(int(metric["step"]), metric["value"]) for metric in found]


def test_mlflow_has_the_figures_of_a_run_and_of_the_one_that_resumes_it(server, images, tmp_path, monkeypatch, capsys):
    _, address = server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setattr(backends, "get", lambda device, deterministic=False: FakeBackend())
    out = tmp_path / "runs" / "mine"
    settings = [*TINY, f"data.source={images}", "run.trackers=[mlflow]", "run.max_steps=4"]
    assert main(["train", "--out", str(out), *(f"--set={value}" for value in settings)]) == 0
    stored = json.loads((out / "trackers" / "mlflow.json").read_text())
    # nothing of the library's stands among what the run prints
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if "mlflow:" in line] == [f"mlflow: {stored['address']}"]
    assert "View run" not in said
    # the steps behind a checkpoint that was lost are taken again
    (out / "checkpoints" / "step-00000004" / "state.json").unlink()
    assert main(["train", "--resume", "--out", str(out), "--set=run.max_steps=null"]) == 0
    assert json.loads((out / "trackers" / "mlflow.json").read_text()) == stored

    run = ask(address, "runs/get", run_id=stored["id"])["run"]
    assert (run["info"]["run_name"], run["info"]["status"]) == ("runs/mine", "FINISHED")
    experiment = ask(address, "experiments/get", experiment_id=run["info"]["experiment_id"])["experiment"]
    assert experiment["name"] == "ehm"
    params = {param["key"]: param["value"] for param in run["data"]["params"]}
    assert params["optim.batch_size"] == "4"
    assert params["image_size"] == "[32, 32]"
    assert params["run.max_steps"] == "4"
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for key in ("loss", "lr", "mask_level"):
        assert get_history(address, stored["id"], key) == [(line["step"], line[key]) for line in lines]


def test_mlflow_shows_pictures_and_how_a_run_ended(server, page, tmp_path, monkeypatch):
    _, address = server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    with pytest.raises(KeyboardInterrupt):  # noqa: SIM117, PT012 - what happens in the run is what is tested
        with RunLog(tmp_path / "a", 10, trackers=["mlflow"], settings=SETTINGS) as log:
            log.add_picture(2, "reconstruction", page)
            raise KeyboardInterrupt
    stored = json.loads((tmp_path / "a" / "trackers" / "mlflow.json").read_text())
    run = ask(address, "runs/get", run_id=stored["id"])["run"]
    assert run["info"]["status"] == "KILLED"
    files = [file["path"] for file in ask(address, "artifacts/list", run_id=stored["id"], path="images")["files"]]
    # "images/reconstruction+step+2+timestamp+...", with % in place of + in some versions
    assert any(re.match(r"images/reconstruction\Wstep\W2\W.*\.png$", file) for file in files), files


@pytest.mark.parametrize("moment", ["start", "middle"])
def test_without_its_server_mlflow_costs_one_line(server, tmp_path, monkeypatch, capsys, moment):
    """The last test with the server, which it ends."""
    process, address = server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    if moment == "start":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    out = tmp_path / "out"
    with RunLog(out, 10, trackers=["mlflow"], settings=SETTINGS) as log:
        log.log(1, {"loss": 1.0})
        if moment == "middle":
            while not (out / "trackers" / "mlflow.json").exists():
                time.sleep(0.1)
            stop(process)
        log.log(2, {"loss": 0.5})
    said = capsys.readouterr().out
    assert said.count("mlflow gets no more figures of this run, which goes on without it: MlflowException: ") == 1
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2


# Offline files


def read_size(path):
    with Image.open(path) as picture:
        return picture.size


def read_records(path):
    """Yield the records of a log in LevelDB's format, which both libraries write behind seven bytes of their own."""
    content = path.read_bytes()
    position = 7
    parts = []
    while position < len(content):
        room = LOG_BLOCK - position % LOG_BLOCK
        if room < 7:  # no header fits in what is left of the block
            position += room
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        parts.append(content[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (LOG_FULL, LOG_LAST):
            yield b"".join(parts)
            parts = []


def test_wandb_keeps_the_run_and_the_one_that_resumes_it_under_one_id(page, tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb", reason="wandb is not installed here: make test runs this in .venv-trackers")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    out = tmp_path / "runs" / "mine"
    log_steps(out, "wandb", 0, 4, page)
    log_steps(out, "wandb", 2, 6, page)
    assert "wandb" not in capsys.readouterr().out
    assert (out / "trackers" / "wandb.log").read_text() == ""
    stored = json.loads((out / "trackers" / "wandb.json").read_text())
    first, second = sorted(out.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    expected = {first: range(1, 5), second: range(3, 7)}
    for file, steps in expected.items():
        records = [Record.FromString(record) for record in read_records(file)]
        (run,) = [record.run for record in records if record.HasField("run")]
        assert (run.run_id, run.project, run.display_name) == (stored["id"], "ehm", "runs/mine")
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert config == {**SETTINGS, "run.max_steps": steps[-1], "_wandb": {}}
        rows = []
        for record in records:
            if record.HasField("history"):
                items = record.history.item
                rows.append({(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in items})
        logged = [(row["_step"], row["loss"], row["lr"]) for row in rows if "loss" in row]
        assert logged == [(step, 1 / step, 0.5 * step) for step in steps]
        picture = out / "wandb" / file.parent.name / "files" / rows[-1]["reconstruction/path"]
        assert rows[-1]["_step"] == steps[-1]
        assert read_size(picture) == (6, 4)


def test_swanlab_keeps_the_run_and_the_one_that_resumes_it_under_one_id(page, tmp_path, monkeypatch, capsys):
    pytest.importorskip("swanlab", reason="swanlab is not installed here: make test runs this in .venv-trackers")
    import yaml
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.proto.swanlab.run.v1.run_pb2 import RunState

    monkeypatch.setenv("SWANLAB_MODE", "offline")
    out = tmp_path / "runs" / "mine"
    log_steps(out, "swanlab", 0, 4, page)
    log_steps(out, "swanlab", 2, 6, page)
    assert "swanlab" not in capsys.readouterr().out
    stored = json.loads((out / "trackers" / "swanlab.json").read_text())
    first, second = sorted(out.glob("swanlab/run-*/*.swanlab"), key=lambda path: path.stat().st_mtime_ns)
    expected = {first: range(1, 5), second: range(3, 7)}
    for file, steps in expected.items():
        records = [Record.FromString(record) for record in read_records(file)]
        (start,) = [record.start for record in records if record.HasField("start")]
        assert (start.id, start.project, start.name) == (stored["id"], "ehm", "runs/mine")
        found = {}
        for record in records:
            if record.HasField("scalar"):
                found.setdefault(record.scalar.key, []).append((record.scalar.step, record.scalar.value.number))
        assert found["loss"] == [(step, 1 / step) for step in steps]
        assert found["lr"] == [(step, 0.5 * step) for step in steps]
        (media,) = [record.media for record in records if record.HasField("media")]
        assert (media.key, media.step) == ("reconstruction", steps[-1])
        assert read_size(file.parent / "media" / "image" / media.value.items[0].filename) == (6, 4)
        (finish,) = [record.finish for record in records if record.HasField("finish")]
        assert finish.state == RunState.RUN_STATE_FINISHED
        config = yaml.safe_load((file.parent / "files" / "config.yaml").read_text())
        assert {key: item["value"] for key, item in config.items()} == SETTINGS | {"run.max_steps": steps[-1]}
