"""A server under load whose bundles are replaced, or that is stopped: every request is answered once."""

import collections
import http.client
import json
import shutil
import signal
import threading

import numpy as np
import pytest
from server_process import Client, ServerProcess, join_clients, start_clients
from server_requests import connect, send_request
from serving import means_bundle


@pytest.fixture
def start():
    started = []

    def start(*arguments, **options):
        started.append(ServerProcess(*arguments, **options))
        return started[-1]

    yield start
    for each in started:
        each.kill()


def version_of(bundle):
    return json.loads((bundle / "manifest.json").read_text())["files"]["model.onnx"]["sha256"][:12]


def test_bundles_are_replaced_under_load_and_no_request_is_lost(tmp_path, start):
    bundle = means_bundle(tmp_path / "m", scale=1)
    scales = {version_of(bundle): 1}
    server = start(bundle, "--poll", "0.05")
    clients, stop = start_clients(server.address)
    for scale in (2, 3, 4):
        server.wait_for_answers(20)
        seen = len(server.lines)
        means_bundle(bundle, scale=scale)
        scales[version_of(bundle)] = scale
        server.wait_for_message(f"version {version_of(bundle)}", seen)
    seen = len(server.lines)
    broken = means_bundle(tmp_path / "broken", scale=5)
    (broken / "model.onnx").write_bytes((broken / "model.onnx").read_bytes()[:-1])
    bundle.rename(tmp_path / "good")
    broken.rename(bundle)
    refused = server.wait_for_message("the new bundle is refused", seen)
    assert "does not match the SHA-256" in refused["message"]
    assert refused["level"] == "error"
    server.wait_for_answers(20)
    stop.set()
    join_clients(clients)
    used = collections.Counter()
    for client in clients:
        assert client.lost_connections == 0
        for status, answer, _ in client.answers:
            assert status == 200
            used[scales[answer["model_version"]]] += 1
            expected = scales[answer["model_version"]] * client.means
            assert np.allclose(answer["outputs"][0]["data"], expected.ravel(), atol=1e-4)
    assert set(used) == {1, 2, 3, 4}

    seen_task = len(server.lines)
    shutil.rmtree(bundle)
    server.wait_for_message("there is no bundle at", seen_task)
    other = means_bundle(tmp_path / "other", ["features"])
    other.rename(bundle)
    assert "its task is features" in server.wait_for_message("the new bundle is refused", seen_task)["message"]
    assert len([line for line in server.lines if "no bundle at" in line["message"]]) == 1
    server.lines[:] = [line for line in server.lines if "its task is" not in line["message"]]
    assert len([line for line in server.lines if "is refused" in line["message"]]) == 1  # not again at every look
    shutil.rmtree(bundle)
    (tmp_path / "good").rename(bundle)
    server.wait_for_message(f"version {version_of(bundle)}", seen)
    seen = len(server.lines)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_message(f"version {version_of(bundle)}", seen)
    assert server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_under_load_answers_what_was_accepted_once_and_exits_with_0(tmp_path, start, number):
    server = start(means_bundle(tmp_path / "m"), "--queue", "4")  # so that it is overloaded as well
    clients, stop = start_clients(server.address, count=12)
    server.wait_for_answers(50)
    assert server.stop(number) == 0
    stop.set()
    join_clients(clients)
    answers = [(status, identity) for client in clients for status, _, identity in client.answers]
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
    server.wait_for_message("warming up")
    assert server.stop() == 0
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
    client = Client(server.address, 0, stop)
    probe = http.client.HTTPConnection(server.address, timeout=30)
    probe.request("GET", "/v2/health/ready")
    answer = probe.getresponse()
    assert (answer.status, answer.read()) == (200, b'{"ready":true}')
    client.start()
    server.wait_for_message("running")
    stop.set()
    server.process.send_signal(signal.SIGTERM)
    server.wait_for_message("stopping")
    try:
        probe.request("GET", "/v2/health/ready")
        answer = probe.getresponse()
        assert (answer.status, answer.read(), answer.headers["connection"]) == (503, b'{"ready":false}', "close")
    except (OSError, http.client.HTTPException):
        pass  # the idle connection was closed already, which is as good as not ready
    probe.close()
    assert server.wait() == 0
    join_clients([client])
    assert [found for found, _, _ in client.answers] == [status]


def test_sigterm_turns_readiness_first_and_requests_are_taken_until_the_port_closes(tmp_path, start):
    """Kubernetes sends requests for some seconds after SIGTERM; Ctrl-C ends these, nobody balances load there."""
    server = start(means_bundle(tmp_path / "m"), "--drain-delay", "600")
    address = server.address
    client = Client(address, 0, threading.Event())
    assert send_request(address, "GET", "/v2/health/ready").body == {"ready": True}
    half = connect(address)
    half.sendall(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(client.body))
    server.process.send_signal(signal.SIGTERM)
    server.wait_for_message("not ready any more, but requests are taken for another 600 seconds")
    for _ in range(3):
        ready = send_request(address, "GET", "/v2/health/ready")
        assert (ready.status, ready.body, ready.headers["connection"]) == (503, {"ready": False}, "close")
        response = send_request(address, "POST", "/v2/models/m/infer", client.body)
        assert (response.status, response.headers["connection"]) == (200, "close")
        assert np.allclose(response.body["outputs"][0]["data"], client.means.ravel(), atol=1e-4)
    ready = send_request(address, "GET", "/v2/models/m/ready")
    assert (ready.status, ready.body) == (503, {"name": "m", "ready": False})
    assert send_request(address, "GET", "/v2/health/live").status == 200
    server.process.send_signal(signal.SIGTERM)  # a second one changes nothing
    server.process.send_signal(signal.SIGINT)
    server.wait_for_message("stopping: what was accepted is answered")
    half.sendall(client.body)
    assert half.recv(100).startswith(b"HTTP/1.1 200 ")
    half.close()
    assert server.wait() == 0
    assert [line["message"] for line in server.lines if "stopp" in line["message"]][-1] == "stopped"


def test_the_port_closes_by_itself_after_the_delay(tmp_path, start):
    server = start(means_bundle(tmp_path / "m"), "--drain-delay", "0.2")
    address = server.address
    assert server.stop() == 0
    with pytest.raises(ConnectionRefusedError):
        send_request(address, "GET", "/v2/health/live")
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
    with connect(server.address) as lazy:
        lazy.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert lazy.recv(9) == b"HTTP/1.1 "
        assert server.stop() == 0
    assert not [line for line in server.lines if "traceback" in line or line["level"] == "error"]
