"""The threads of a request: bodies are read off the event loop, a lone image by one thread, and batches run at once."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from types import SimpleNamespace

import anyio.to_thread
import numpy as np
import pytest
import requests
from PIL import Image
from server_requests import encode_tensor, make_image_file, make_infer_body, send_request
from serving import SIZE, running

from ehm.deploy.predict import predictor as predictor_module
from ehm.deploy.predict.predictor import Predictor
from ehm.deploy.serve.inference import forms, served_model
from ehm.deploy.serve.inference.served_model import count_parallel_runs
from ehm.deploy.serve.routes import open_inference

INFER = "/v2/models/both/infer"


def make_plain_file():
    """Return a picture of one colour, whose channels have the means 10, 20 and 30."""
    content = BytesIO()
    Image.new("RGB", (20, 16), (10, 20, 30)).save(content, "PNG")
    return content.getvalue()


def encode_constant(value):
    """Return the body of an inference request for an image whose numbers are all the same."""
    return encode_tensor(np.full((1, 3, *SIZE), value, np.float32))


def test_no_request_takes_a_thread_of_the_framework(served_bundle, monkeypatch):
    """FastAPI calls whatever is no coroutine in a thread of its own, which costs a lone request a tenth of its time."""

    async def refused(function, *arguments, **options):
        raise AssertionError(f"{function} in a thread")

    with running([served_bundle]) as (address, _):
        monkeypatch.setattr(anyio.to_thread, "run_sync", refused)
        assert send_request(address, "POST", "/v1/classify", make_plain_file()).status == 200
        assert send_request(address, "POST", "/v1/embed", make_plain_file()).status == 200
        assert send_request(address, "POST", INFER, encode_constant(1)).status == 200
        assert send_request(address, "POST", "/v2/repository/index", b"").status == 200


def test_parsing_stops_nobody_else(limited_server, monkeypatch):
    """A form of 16 MiB takes a third of a second: not on the event loop, where everybody would wait."""
    threads = []
    loads = json.loads

    def note_thread():
        threads.append(threading.current_thread().name)

    def note_and_load(content):
        note_thread()
        return loads(content)

    class NotingParser(forms.MultiPartParser):
        async def parse(self):
            note_thread()
            return await super().parse()

    monkeypatch.setattr(forms, "_InMemoryParser", NotingParser)
    monkeypatch.setattr(open_inference.json, "loads", note_and_load)
    form = {"image": make_image_file()}
    assert requests.post(f"http://{limited_server}/v1/classify", files=form, timeout=30).status_code == 200
    assert send_request(limited_server, "POST", "/v2/repository/index", b"{}").status == 200
    # the test reads JSON too, in the first of these threads
    assert {name.partition("_")[0] for name in threads} == {"MainThread", "decode"}


@pytest.mark.parametrize("name", ["decode_request", "encode_response"])
def test_tensors_are_read_and_written_on_no_event_loop(limited_server, monkeypatch, name):
    """JSON of 16 MiB takes seconds, in which the loop could answer nobody else."""
    threads = []
    function = getattr(open_inference, name)

    def note_and_call(*arguments):
        threads.append(threading.current_thread().name)
        return function(*arguments)

    monkeypatch.setattr(open_inference, name, note_and_call)
    assert send_request(limited_server, "POST", INFER, make_infer_body()).status == 200
    assert [thread.partition("_")[0] for thread in threads] == ["decode"]


def test_a_lone_image_is_read_and_run_in_one_thread(served_bundle, monkeypatch):
    threads = []

    def noted(name, function):
        def call(*arguments, **options):
            threads.append((name, threading.get_ident()))
            return function(*arguments, **options)

        monkeypatch.setattr(Predictor, name, call)

    with running([served_bundle]) as (address, service):
        noted("prepare", Predictor.prepare)
        monkeypatch.setattr(service.models["both"].batcher, "_run", recorded(threads, service))
        response = send_request(address, "POST", "/v1/embed", make_plain_file())
    assert (response.status, np.round(response.body["features"])) == (200, pytest.approx([10, 20, 30]))
    (first, there), (second, here) = threads
    assert (first, second, there) == ("prepare", "run", here)


def recorded(threads, service):
    run = service.models["both"].predictor.run

    def call(*arguments):
        threads.append(("run", threading.get_ident()))
        return run(*arguments)

    return call


def test_batches_run_at_once_on_a_processor(served_bundle, monkeypatch):
    """Each waits until the other runs, too."""
    monkeypatch.setattr(served_model, "count_available_processors", lambda: 2)
    together = threading.Barrier(2)
    with running([served_bundle], max_batch=1) as (address, service), ThreadPoolExecutor() as pool:
        run = service.models["both"].predictor.run

        def slow(*arguments):
            together.wait(20)
            return run(*arguments)

        for name in ("_run", "_run_beside"):
            monkeypatch.setattr(service.models["both"].batcher, name, slow)
        asked = [pool.submit(send_request, address, "POST", INFER, encode_constant(value)) for value in (1, 2)]
        responses = [each.result() for each in asked]
    assert [response.body["outputs"][0]["data"] for response in responses] == [[1, 1, 1], [2, 2, 2]]


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
def test_runs_have_a_thread_each_if_there_is_a_core_for_each(served_bundle, monkeypatch, processors, sessions):
    """If a run has several cores, a session with one thread would leave all but one idle."""
    opened = []
    open_network = predictor_module.open_network

    def note(bundle, device, precision, threads):
        opened.append(threads)
        return open_network(bundle, device, precision, threads)

    monkeypatch.setattr(served_model, "count_available_processors", lambda: processors)
    monkeypatch.setattr(predictor_module, "open_network", note)
    with running([served_bundle]) as (address, _):
        assert send_request(address, "POST", INFER, encode_constant(1)).status == 200
    assert opened == [0, 1][:sessions]
