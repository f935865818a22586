"""The command: what it says, bundles replaced under load, and stopping under load, every request answered once."""

import collections
import http.client
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from serving import means_bundle, picture

from ehm.cli import main
from ehm.deploy.serve.http.listening import bind_port

SERVER = "ehm.deploy.serve.http.server"


class Process:
    """A server in a process of its own, whose log is read as it is written."""

    def __init__(self, *arguments, before=""):
        code = f"import sys\nfrom ehm.cli import main\n{before}\nsys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-W", "error", "-c", code, "serve", "--drain-delay", "0", *map(str, arguments)]
        self.process = subprocess.Popen([*command, "--port", "0", "--log", "json"], stderr=subprocess.PIPE, text=True)
        self.lines = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def address(self):
        return self.until("ready at")["message"].split()[2].removeprefix("http://").removesuffix(":")

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(json.loads(line))

    def until(self, text, after=0):
        """The first line from the ``after``-th on whose message has that text."""
        ends = time.monotonic() + 60
        while time.monotonic() < ends:
            found = [line for line in self.lines[after:] if text in line["message"]]
            if found:
                return found[0]
            assert self.process.poll() is None, self.lines
            time.sleep(0.01)
        raise AssertionError(self.lines)

    def answers(self, count):
        """Wait for so many more requests with 200."""
        ends, first = time.monotonic() + 60, len(self.lines)
        while len([line for line in self.lines[first:] if line.get("status") == 200]) < count:
            assert time.monotonic() < ends
            time.sleep(0.01)

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.wait()

    def wait(self):
        status = self.process.wait(60)
        self._reader.join(60)
        self.process.stderr.close()
        return status

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.wait()


@pytest.fixture
def start():
    started = []

    def start(*arguments, **options):
        started.append(Process(*arguments, **options))
        return started[-1]

    yield start
    for each in started:
        each.kill()


class Load(threading.Thread):
    """A client that asks again and again on one connection, and keeps what came of each request."""

    def __init__(self, address, seed, stop):
        super().__init__()
        self.address, self.stop, self.answers, self.cut = address, stop, [], 0
        images, self.means = picture(seed, batch=1 + seed % 3)
        tensor = {"name": "images", "shape": images.shape, "datatype": "FP32", "data": images.ravel().tolist()}
        self.body = json.dumps({"inputs": [tensor], "outputs": [{"name": "features"}]})

    def run(self):
        connection = http.client.HTTPConnection(self.address, timeout=30)
        while not self.stop.is_set():
            try:
                connection.request("POST", "/v2/models/m/infer", self.body)
                answer = connection.getresponse()
                self.answers.append((answer.status, json.loads(answer.read()), answer.headers["x-request-id"]))
            except (OSError, http.client.HTTPException):
                self.cut += 1
                connection.close()
                if self.cut > 1:  # the server is gone
                    break
        connection.close()


def under_load(address, clients=6):
    stop = threading.Event()
    loads = [Load(address, seed, stop) for seed in range(clients)]
    for load in loads:
        load.start()
    return loads, stop


def finish(loads):
    for load in loads:
        load.join(60)
        assert not load.is_alive()


def version_of(bundle):
    return json.loads((bundle / "manifest.json").read_text())["files"]["model.onnx"]["sha256"][:12]


def test_bundles_are_replaced_under_load_and_no_request_is_lost(tmp_path, start):
    bundle = means_bundle(tmp_path / "m", scale=1)
    scales = {version_of(bundle): 1}
    server = start(bundle, "--poll", "0.05")
    loads, stop = under_load(server.address)
    for scale in (2, 3, 4):
        server.answers(20)
        seen = len(server.lines)
        means_bundle(bundle, scale=scale)
        scales[version_of(bundle)] = scale
        server.until(f"version {version_of(bundle)}", seen)
    seen = len(server.lines)
    broken = means_bundle(tmp_path / "broken", scale=5)
    (broken / "model.onnx").write_bytes((broken / "model.onnx").read_bytes()[:-1])
    bundle.rename(tmp_path / "good")
    broken.rename(bundle)
    refused = server.until("the new bundle is refused", seen)
    assert "does not match the SHA-256" in refused["message"]
    assert refused["level"] == "error"
    server.answers(20)
    stop.set()
    finish(loads)
    used = collections.Counter()
    for load in loads:
        assert load.cut == 0
        for status, answer, _ in load.answers:
            assert status == 200
            used[scales[answer["model_version"]]] += 1
            expected = scales[answer["model_version"]] * load.means
            assert np.allclose(answer["outputs"][0]["data"], expected.ravel(), atol=1e-4)
    assert set(used) == {1, 2, 3, 4}

    seen_task = len(server.lines)
    shutil.rmtree(bundle)
    server.until("there is no bundle at", seen_task)
    other = means_bundle(tmp_path / "other", ["features"])
    other.rename(bundle)
    assert "its task is features" in server.until("the new bundle is refused", seen_task)["message"]
    assert len([line for line in server.lines if "no bundle at" in line["message"]]) == 1
    server.lines[:] = [line for line in server.lines if "its task is" not in line["message"]]
    assert len([line for line in server.lines if "is refused" in line["message"]]) == 1  # not again at every look
    shutil.rmtree(bundle)
    (tmp_path / "good").rename(bundle)
    server.until(f"version {version_of(bundle)}", seen)
    seen = len(server.lines)
    server.process.send_signal(signal.SIGHUP)
    server.until(f"version {version_of(bundle)}", seen)
    assert server.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_under_load_answers_what_was_accepted_once_and_exits_with_0(tmp_path, start, number):
    server = start(means_bundle(tmp_path / "m"), "--queue", "4")  # so that it is overloaded as well
    loads, stop = under_load(server.address, clients=12)
    server.answers(50)
    assert server.end(number) == 0
    stop.set()
    finish(loads)
    answers = [(status, identity) for load in loads for status, _, identity in load.answers]
    served = {line["id"]: line["status"] for line in server.lines if line["message"] == "request"}
    assert len(served) == len([line for line in server.lines if line["message"] == "request"])
    assert collections.Counter(served.values()) == collections.Counter(status for status, _ in answers)
    assert served == {identity: status for status, identity in answers}
    assert set(served.values()) <= {200, 429, 503}
    assert 200 in served.values()
    assert server.lines[-1]["message"] == "stopped"
    assert server.lines[-1]["level"] == "info"


LOADING = """
import logging, time
from ehm.deploy.predict.predictor import Predictor
run = Predictor.run
def slow(self, images, names=()):
    logging.getLogger("ehm.serve").info("warming up")
    time.sleep(0.3)
    return run(self, images, names)
Predictor.run = slow
"""


def test_stopping_while_it_loads_is_in_order_too(tmp_path, start):
    server = start(means_bundle(tmp_path / "m"), before=LOADING)
    server.until("warming up")
    assert server.end() == 0
    assert not [line for line in server.lines if "ready" in line["message"]]


SLOW = """
import logging, time
from ehm.deploy.predict.predictor import Predictor
run = Predictor.run
def slow(self, images, names=()):
    if images.any():  # not in the warm-up
        logging.getLogger("ehm.serve").info("running")
        time.sleep(1)
    return run(self, images, names)
Predictor.run = slow
"""


@pytest.mark.parametrize(("drain", "status"), [("20", 200), ("0.1", 503)])
def test_draining_is_not_ready_at_once_and_has_an_end(tmp_path, start, drain, status):
    server = start(means_bundle(tmp_path / "m"), "--drain", drain, before=SLOW)
    stop = threading.Event()
    load = Load(server.address, 0, stop)
    probe = http.client.HTTPConnection(server.address, timeout=30)
    probe.request("GET", "/v2/health/ready")
    answer = probe.getresponse()
    assert (answer.status, answer.read()) == (200, b'{"ready":true}')
    load.start()
    server.until("running")
    stop.set()
    server.process.send_signal(signal.SIGTERM)
    server.until("stopping")
    try:
        probe.request("GET", "/v2/health/ready")
        answer = probe.getresponse()
        assert (answer.status, answer.read(), answer.headers["connection"]) == (503, b'{"ready":false}', "close")
    except (OSError, http.client.HTTPException):
        pass  # the idle connection was closed already, which is as good as not ready
    probe.close()
    assert server.wait() == 0
    finish([load])
    assert [found for found, _, _ in load.answers] == [status]


def ask_once(address, method, path, body=None):
    """Status, headers and body of a request on a connection of its own."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def test_sigterm_turns_readiness_first_and_requests_are_taken_until_the_port_closes(tmp_path, start):
    """Kubernetes sends requests for some seconds after SIGTERM; Ctrl-C ends these, nobody balances load there."""
    server = start(means_bundle(tmp_path / "m"), "--drain-delay", "600")
    address = server.address
    host, port = address.split(":")
    asked = Load(address, 0, threading.Event())
    assert ask_once(address, "GET", "/v2/health/ready")[::2] == (200, b'{"ready":true}')
    half = socket.create_connection((host, int(port)), timeout=30)
    half.sendall(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(asked.body))
    server.process.send_signal(signal.SIGTERM)
    server.until("not ready any more, but requests are taken for another 600 seconds")
    for _ in range(3):
        status, headers, body = ask_once(address, "GET", "/v2/health/ready")
        assert (status, body, headers["connection"]) == (503, b'{"ready":false}', "close")
        status, headers, body = ask_once(address, "POST", "/v2/models/m/infer", asked.body)
        assert (status, headers["connection"]) == (200, "close")
        assert np.allclose(json.loads(body)["outputs"][0]["data"], asked.means.ravel(), atol=1e-4)
    assert ask_once(address, "GET", "/v2/models/m/ready")[::2] == (503, b'{"name":"m","ready":false}')
    assert ask_once(address, "GET", "/v2/health/live")[0] == 200
    server.process.send_signal(signal.SIGTERM)  # a second one changes nothing
    server.process.send_signal(signal.SIGINT)
    server.until("stopping: what was accepted is answered")
    half.sendall(asked.body.encode())
    assert half.recv(100).startswith(b"HTTP/1.1 200 ")
    half.close()
    assert server.wait() == 0
    assert [line["message"] for line in server.lines if "stopp" in line["message"]][-1] == "stopped"


def test_the_port_closes_by_itself_after_the_delay(tmp_path, start):
    server = start(means_bundle(tmp_path / "m"), "--drain-delay", "0.2")
    address = server.address
    assert server.end() == 0
    with pytest.raises(ConnectionRefusedError):
        ask_once(address, "GET", "/v2/health/live")
    assert [line["message"] for line in server.lines][-3:] == [
        "stopping: not ready any more, but requests are taken for another 0.2 seconds",
        "stopping: what was accepted is answered, for 20 seconds at most",
        "stopped",
    ]


UNREAD = """
from unittest.mock import patch
from ehm.deploy.serve.inference.metrics import Metrics
patch.object(Metrics, "render", lambda self: bytes(40_000_000)).start()
"""
"""An answer that no kernel takes whole; ``patch`` refuses a name that is not there, which an assignment would not."""


@pytest.mark.parametrize("limits", [("--send-timeout", "0.3", "--drain", "600"), ("--drain", "1")])
def test_a_client_that_does_not_read_cannot_hold_the_stop_up(tmp_path, start, limits):
    server = start(means_bundle(tmp_path / "m"), *limits, before=UNREAD)
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as lazy:
        lazy.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert lazy.recv(9) == b"HTTP/1.1 "
        assert server.end() == 0
    assert not [line for line in server.lines if "traceback" in line or line["level"] == "error"]


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

    def wrong(text):
        wrong.count = getattr(wrong, "count", 0) + 1
        file = tmp_path / str(wrong.count) / "wrong.yaml"
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
            (["--config", wrong("max-bach: 2")], 2, "wrong.yaml: max_bach: unknown key; the nearest is max_batch"),
            (
                ["--config", wrong("max-batch: 0")],
                2,
                "wrong.yaml: max_batch: input should be greater than or equal to 1",
            ),
            (["--config", wrong("max-batch: 2"), "--max-batch", "-1"], 2, "--max-batch -1: input"),
            (["--config", wrong("- max-batch")], 2, "wrong.yaml: the file must be a mapping"),
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
