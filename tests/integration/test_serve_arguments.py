"""Arguments of ``ehm serve``: what is wrong with them is one sentence, and a file gives those that are left out."""

import itertools
import logging
import os
import socket
import subprocess
import sys

import pytest
from serving import means_bundle

from ehm.cli import main
from ehm.deploy.serve.http.listening import bind_port

SERVER = "ehm.deploy.serve.http.server"


@pytest.fixture
def logs():
    """Log as before after a server was started in this process."""
    yield
    for name in ("ehm", "uvicorn", "asyncio"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True


@pytest.mark.usefixtures("logs")
def test_wrong_arguments_are_one_sentence(tmp_path, capsys, monkeypatch):
    good = str(means_bundle(tmp_path / "m"))
    (tmp_path / "empty").touch()

    numbers = itertools.count()

    def write_config(text):
        file = tmp_path / str(next(numbers)) / "wrong.yaml"
        file.parent.mkdir()
        file.write_text(text)
        return str(file)

    # the second one belongs to a server that loads its models and does not listen yet
    with socket.create_server(("127.0.0.1", 0)) as taken, bind_port("127.0.0.1", 0) as loading:
        port = str(taken.getsockname()[1])
        claimed = str(loading.getsockname()[1])
        for arguments, status, sentence in [
            (["/nowhere"], 1, "/nowhere: not a bundle"),
            ([good, good], 2, "there is a model 'm' already"),
            (["/"], 2, "is no name for a model"),
            ([f"={good}"], 2, f"={good}: the name is empty; expected NAME={good}"),
            ([], 2, "expected at least one bundle"),
            (["--config", "/nowhere.yaml"], 2, "--config /nowhere.yaml: no such file"),
            (
                ["--config", write_config("max-bach: 2")],
                2,
                "wrong.yaml: max_bach: unknown key; the nearest is max_batch",
            ),
            (
                ["--config", write_config("max-batch: 0")],
                2,
                "wrong.yaml: max_batch: input should be greater than or equal to 1",
            ),
            (["--config", write_config("max-batch: 2"), "--max-batch", "-1"], 2, "--max-batch -1: input"),
            (["--config", write_config("- max-batch")], 2, "wrong.yaml: the file must be a mapping"),
            ([good, "--port", port], 2, f"--port {port}: Address already in use"),
            (["/nowhere", "--port", claimed], 2, f"--port {claimed}: Address already in use"),
            ([good, "--port", "70000"], 2, "--port 70000: input should be less than 65536"),
            ([good, "--max-batch", "0"], 2, "--max-batch 0: input should be greater than or equal to 1"),
            ([good, "--precision", "int4"], 2, "--precision int4: input should be 'float32', 'float16' or 'int8'"),
            ([good, "--precision", "int8"], 1, "holds no int8 model, only float32"),
            ([good, "--device", "cuda"], 1, "--device cuda: ONNX Runtime here lacks CUDAExecutionProvider"),
            ([good, "--api-key-file", "/nowhere"], 2, "--api-key-file /nowhere: No such file"),
            ([good, "--api-key-file", str(tmp_path / "empty")], 2, "expected a key of printable ASCII characters"),
        ]:
            assert main(["serve", "--port", "0", *arguments]) == status, arguments
            said = capsys.readouterr().err
            assert sentence in said
            assert said.startswith("ehm serve: ")
            assert said.count("\n") == 1
        monkeypatch.setenv("EHM_API_KEY", "")
        assert main(["serve", "--port", "0", good]) == 2
        assert "EHM_API_KEY: expected a key" in capsys.readouterr().err


@pytest.mark.usefixtures("logs")
def test_a_file_gives_what_the_command_line_does_not(tmp_path, monkeypatch):
    config = tmp_path / "serve.yaml"
    config.write_text("bundles: [cells=/bundles/m]\nmodel-control: true\nmax_batch: 2\nport: 1\n")
    started = []
    monkeypatch.setattr(f"{SERVER}._run_server", lambda service, index, listener: started.append(service))
    monkeypatch.setattr(f"{SERVER}._run_event_loop", lambda main: None)
    assert main(["serve", "--config", str(config), "--max-batch", "3", "--port", "0"]) == 0
    (service,) = started
    found = service.settings
    assert (found.model_control, found.max_batch, found.port) == (True, 3, 0)
    assert [model["name"] for model in service.models.list_index()] == ["cells"]


def test_the_server_needs_no_training_framework():
    code = "import sys; from ehm.deploy.serve import serve; print(*{name.partition('.')[0] for name in sys.modules})"
    clean = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert not {"torch", "onnx", "scipy", "timm", "mindspore", "pandas"} & set(done.stdout.split())
