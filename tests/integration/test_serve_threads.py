"""The threads of a request: none of the web framework's, its own if it is alone, and others' runs do not wait."""

import concurrent.futures
import http.client
import json
import threading
from contextlib import closing
from io import BytesIO
from types import SimpleNamespace

import anyio.to_thread
import numpy as np
import pytest
from PIL import Image
from serving import means_bundle, running

from ehm.deploy.predict import predictor as predictor_module
from ehm.deploy.predict.predictor import Predictor
from ehm.deploy.serve.inference import served_model
from ehm.deploy.serve.inference.served_model import count_parallel_runs


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return means_bundle(tmp_path_factory.mktemp("bundles") / "both")


def ask(address, path, body):
    with closing(http.client.HTTPConnection(address, timeout=30)) as connection:
        connection.request("POST", path, body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def picture():
    file = BytesIO()
    Image.new("RGB", (20, 16), (10, 20, 30)).save(file, "PNG")
    return file.getvalue()


def tensor(value):
    data = np.full(3 * 8 * 12, value).tolist()
    return json.dumps({"inputs": [{"name": "images", "datatype": "FP32", "shape": [1, 3, 8, 12], "data": data}]})


def test_no_request_takes_a_thread_of_the_framework(bundle, monkeypatch):
    """FastAPI calls whatever is no coroutine in a thread of its own, which costs a lone request a tenth of its time."""

    async def refused(function, *arguments, **options):
        raise AssertionError(f"{function} in a thread")

    with running([bundle]) as (address, _):
        monkeypatch.setattr(anyio.to_thread, "run_sync", refused)
        assert ask(address, "/v1/classify", picture())[0] == 200
        assert ask(address, "/v1/embed", picture())[0] == 200
        assert ask(address, "/v2/models/both/infer", tensor(1))[0] == 200
        assert ask(address, "/v2/repository/index", b"")[0] == 200


def test_a_lone_image_is_read_and_run_in_one_thread(bundle, monkeypatch):
    threads = []

    def noted(name, function):
        def call(*arguments, **options):
            threads.append((name, threading.get_ident()))
            return function(*arguments, **options)

        monkeypatch.setattr(Predictor, name, call)

    with running([bundle]) as (address, service):
        noted("prepare", Predictor.prepare)
        monkeypatch.setattr(service.models["both"].batcher, "_run", recorded(threads, service))
        status, answer = ask(address, "/v1/embed", picture())
    assert (status, np.round(answer["features"])) == (200, pytest.approx([10, 20, 30]))
    (first, there), (second, here) = threads
    assert (first, second, there) == ("prepare", "run", here)


def recorded(threads, service):
    run = service.models["both"].predictor.run

    def call(*arguments):
        threads.append(("run", threading.get_ident()))
        return run(*arguments)

    return call


def test_batches_run_at_once_on_a_processor(bundle, monkeypatch):
    """Each waits until the other runs, too."""
    monkeypatch.setattr(served_model, "count_available_processors", lambda: 2)
    together = threading.Barrier(2)
    with running([bundle], max_batch=1) as (address, service), concurrent.futures.ThreadPoolExecutor() as pool:
        run = service.models["both"].predictor.run

        def slow(*arguments):
            together.wait(20)
            return run(*arguments)

        for name in ("_run", "_run_beside"):
            monkeypatch.setattr(service.models["both"].batcher, name, slow)
        asked = [pool.submit(ask, address, "/v2/models/both/infer", tensor(value)) for value in (1, 2)]
        answers = [each.result() for each in asked]
    assert [answer["outputs"][0]["data"] for _, answer in answers] == [[1, 1, 1], [2, 2, 2]]


@pytest.mark.parametrize(
    ("provider", "processors", "threads", "expected"),
    [
        ("CPUExecutionProvider", 1, 0, 1),
        ("CPUExecutionProvider", 2, 0, 2),
        ("CPUExecutionProvider", 64, 0, 4),
        ("CPUExecutionProvider", 64, 1, 1),
        ("CPUExecutionProvider", 64, 3, 3),
        ("CPUExecutionProvider", 64, 16, 4),
        ("CUDAExecutionProvider", 64, 0, 1),
        ("CANNExecutionProvider", 64, 8, 1),
        ("OpenVINOExecutionProvider", 64, 0, 1),
    ],
)
def test_how_many_run_at_once(monkeypatch, provider, processors, threads, expected):
    monkeypatch.setattr(served_model, "count_available_processors", lambda: processors)
    assert count_parallel_runs(SimpleNamespace(provider=provider), threads) == expected


@pytest.mark.parametrize(("processors", "sessions"), [(1, 1), (2, 2), (4, 2), (64, 1)])
def test_runs_have_a_thread_each_if_there_is_a_core_for_each(bundle, monkeypatch, processors, sessions):
    """If a run has several cores, a session with one thread would leave all but one idle."""
    opened = []
    open_network = predictor_module.open_network

    def note(bundle, device, precision, threads):
        opened.append(threads)
        return open_network(bundle, device, precision, threads)

    monkeypatch.setattr(served_model, "count_available_processors", lambda: processors)
    monkeypatch.setattr(predictor_module, "open_network", note)
    with running([bundle]) as (address, _):
        assert ask(address, "/v2/models/both/infer", tensor(1))[0] == 200
    assert opened == [0, 1][:sessions]
