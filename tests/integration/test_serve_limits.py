"""Requests of strangers: every limit has its status and a sentence, and nothing is a failure of the server."""

import asyncio
import concurrent.futures
import contextlib
import http.client
import json
import logging
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from io import BytesIO
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from serving import means_bundle, picture, running

from ehm.deploy.predict.predictor import Predictor
from ehm.deploy.serve.http.logs import _Json, _Text
from ehm.deploy.serve.inference.images import FORMATS, read_image
from ehm.deploy.serve.inference.service import Service
from ehm.deploy.serve.routes import forms, open_inference
from ehm.errors import RequestError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return means_bundle(tmp_path_factory.mktemp("bundles") / "both")


@pytest.fixture(scope="module")
def server(bundle):
    with running([bundle], max_bytes=200_000, max_pixels=40_000) as (address, _):
        yield address


def ask(address, method, path, body=None, headers=None):
    """Status, headers and body; a JSON body is read."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        raw = answer.read()
        kind = answer.headers["content-type"]
        return answer.status, answer.headers, json.loads(raw) if kind == "application/json" else raw
    finally:
        connection.close()


def file(kind="PNG", size=(40, 30), **options):
    corners = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8))
    out = BytesIO()
    corners.resize(size).save(out, kind, **options)
    return out.getvalue()


def png(width, height):
    """A PNG that says its size in its header, and has next to no data."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def infer_body(seed=0, batch=1, **parameters):
    images, _ = picture(seed, batch)
    tensor = {"name": "images", "shape": images.shape, "datatype": "FP32", "data": images.ravel().tolist()}
    return json.dumps({"inputs": [tensor], "parameters": parameters}).encode()


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "sentence"),
    [
        ("GET", "/nothing", None, {}, 404, "there is nothing at /nothing"),
        ("GET", "/v1/classify", None, {}, 405, "/v1/classify takes POST, not GET"),
        ("GET", "/v2/", None, {}, 404, "there is nothing at /v2/; try it without the / at its end"),
        ("GET", "/v2/models/both/config", None, {}, 404, "/v2/models/both has inputs and outputs"),
        ("GET", "/v2/models/both/stats", None, {}, 404, "/metrics has such figures"),
        ("GET", "/v2/models/none/stats", None, {}, 404, "there is no model 'none'"),
        ("POST", "/v1/classify?model=x", b"", {}, 404, "there is no model 'x'; there are both"),
        ("GET", "/v2/models/both/versions/9", None, {}, 404, "both has the version"),
        ("POST", "/v1/classify?top=0", file(), {}, 422, "top: "),
        ("POST", "/v1/classify", b"", {}, 422, "the image is empty"),
        ("POST", "/v1/classify", b"text", {}, 422, "not an image of a known format"),
        (
            "POST",
            "/v1/classify",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            {},
            422,
            "not an image of a known",
        ),
        ("POST", "/v1/classify", file()[:-40], {}, 422, "the image"),
        ("POST", "/v1/classify", png(60_000, 60_000), {}, 413, "more than 40000 pixels"),
        ("POST", "/v1/classify", png(300, 200), {}, 413, "300 x 200 pixels, more than 40000"),
        ("POST", "/v1/classify", file(size=(3000, 1)), {}, 413, "more than 40000 pixels once resized"),
        ("POST", "/v1/classify", bytes(200_001), {}, 413, "200001 bytes, more than 200000"),
        ("POST", "/v1/classify", iter([bytes(150_000)] * 2), {}, 413, "more than 200000 bytes"),
        ("POST", "/v1/classify", b"{}", {"content-type": "application/json"}, 415, "expected an image file"),
        ("POST", "/v1/classify", b"x", {"content-type": "multipart/form-data"}, 400, "form cannot be read"),
        ("POST", "/v1/embed", b"x", {"content-encoding": "gzip"}, 415, "send the body as it is"),
        ("POST", "/v2/models/both/infer", b"{", {}, 400, "not JSON"),
        ("POST", "/v2/models/both/infer", b"{}", {"inference-header-content-length": "-1"}, 400, "number of bytes"),
        ("POST", "/v2/repository/index", b"[]", {}, 400, "a JSON object"),
        ("POST", "/v2/repository/models/both/load", b"", {}, 403, "--model-control"),
        ("POST", "/v2/repository/models/both/unload", b"", {}, 403, "--model-control"),
    ],
)
def test_each_limit_is_a_status_and_a_sentence(server, method, path, body, headers, status, sentence):
    found, _, answer = ask(server, method, path, body, headers)
    assert (found, list(answer)) == (status, ["error"])
    assert sentence in answer["error"]


def form(name, content):
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"\r\n\r\n'.encode()
    return head + content + b"\r\n--b--\r\n", {"content-type": "multipart/form-data; boundary=b"}


def test_a_form_needs_the_field_image(server):
    assert ask(server, "POST", "/v1/classify", *form("image", file()))[0] == 200
    status, _, answer = ask(server, "POST", "/v1/classify", *form("photo", file()))
    assert (status, answer) == (400, {"error": "the form has no file in the field image"})


def test_parsing_stops_nobody_else(server, monkeypatch):
    """A form of 16 MiB takes a third of a second: not on the event loop, where everybody would wait."""
    threads, loads = [], json.loads

    def note():
        threads.append(threading.current_thread().name)

    class Parser(forms.MultiPartParser):
        async def parse(self):
            note()
            return await super().parse()

    monkeypatch.setattr(forms, "_InMemoryParser", Parser)
    monkeypatch.setattr(open_inference.json, "loads", lambda body: (note(), loads(body))[1])
    assert ask(server, "POST", "/v1/classify", *form("image", file()))[0] == 200
    assert ask(server, "POST", "/v2/repository/index", b"{}")[0] == 200
    assert {name.partition("_")[0] for name in threads} == {"MainThread", "decode"}  # the first is this test's


@pytest.mark.parametrize("name", ["decode_request", "encode_response"])
def test_tensors_are_read_and_written_on_no_event_loop(server, monkeypatch, name):
    """JSON of 16 MiB takes seconds, in which the loop could answer nobody else."""
    threads = []
    function = getattr(open_inference, name)

    def note(*arguments):
        threads.append(threading.current_thread().name)
        return function(*arguments)

    monkeypatch.setattr(open_inference, name, note)
    assert ask(server, "POST", "/v2/models/both/infer", infer_body())[0] == 200
    assert [thread.partition("_")[0] for thread in threads] == ["decode"]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read(kind):
    read = read_image(file(kind), 40_000)
    assert (read.mode, read.size) == ("RGB", (40, 30))


def test_formats_that_start_programs_are_not_even_tried(monkeypatch):
    tried = []
    for kind in set(Image.OPEN) - set(FORMATS):
        monkeypatch.setitem(Image.OPEN, kind, (lambda *arguments: tried.append(arguments), lambda prefix: True))
    with pytest.raises(RequestError, match="not an image of a known format"):
        read_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 40_000)
    assert tried == []


IMAGES = [
    file("PNG"),
    file("JPEG"),
    file("GIF"),
    file("WEBP"),
    file("TIFF"),
    file("BMP"),
    file("PNG", (9, 9), exif=b"x"),
]


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(IMAGES),
    st.lists(st.tuples(st.integers(0, 10_000), st.binary(min_size=1, max_size=6)), max_size=4),
    st.integers(1, 10_000),
)
def test_mutated_files_are_read_or_refused(content, changes, length):
    mutated = bytearray(content)
    for place, new in changes:
        place %= len(mutated)
        mutated[place : place + len(new)] = new
    try:
        image = read_image(bytes(mutated[:length]), 40_000)
    except RequestError as refused:
        status, size = refused.status, 0
    else:
        status, size = 200, image.width * image.height
    assert status in (200, 413, 422)
    assert size <= 40_000


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(IMAGES), st.integers(0, 2000), st.binary(max_size=9), st.sampled_from(["classify", "embed"]))
def test_no_file_is_a_failure_of_the_server(server, content, place, new, route):
    status, _, answer = ask(server, "POST", f"/v1/{route}", content[:place] + new + content[place + len(new) :])
    assert status in (200, 413, 422), answer


def test_schemathesis_finds_no_failure(server, tmp_path):
    """From our own OpenAPI description: no 5xx, no answer that it does not describe, no wrong request accepted."""
    schema = json.load(urlopen(f"http://{server}/openapi.json"))
    schema["paths"] = {path: methods for path, methods in schema["paths"].items() if "{version}" not in path}
    for methods in schema["paths"].values():
        for parameter in (each for route in methods.values() for each in route.get("parameters", ())):
            if parameter["name"] == "model":
                parameter["schema"] = {"type": "string", "enum": ["both"]}  # or it would hardly ever get behind the 404
    (tmp_path / "openapi.json").write_text(json.dumps(schema))
    command = [Path(sys.executable).parent / "schemathesis", "run", tmp_path / "openapi.json"]
    command += ["--url", f"http://{server}", "--phases", "fuzzing", "--max-examples", "5", "--workers", "2"]
    command += ["--exclude-checks", "positive_data_acceptance", "--seed", "0", "--no-color"]
    command += ["--suppress-health-check", "too_slow"]  # which depends on what else the machine does
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class Slow:
    """A model that waits until it is let go."""

    def __init__(self, monkeypatch):
        self.open, self.batches, run = threading.Event(), [], Predictor.run
        self.open.set()

        def slow(predictor, images, names=()):
            self.batches.append(len(images))
            assert self.open.wait(20)
            return run(predictor, images, names)

        monkeypatch.setattr(Predictor, "run", slow)

    def hold(self):
        self.open.clear()
        self.batches.clear()


def eventually(condition):
    ends = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.005)


def test_overload_is_429_and_a_late_answer_504(bundle, monkeypatch):
    slow = Slow(monkeypatch)
    with running([bundle], queue=3, timeout=1.0) as (address, _), concurrent.futures.ThreadPoolExecutor(12) as pool:
        slow.hold()
        asked = [pool.submit(ask, address, "POST", "/v2/models/both/infer", infer_body(seed)) for seed in range(12)]
        answers = [each.result() for each in asked]
        slow.open.set()
        assert {status for status, _, _ in answers} == {429, 504}  # how many of each, on how fast the machine is
        assert [status for status, _, _ in answers].count(504) >= 3
        assert all(headers["retry-after"] == "1" for status, headers, _ in answers if status == 429)
        assert ask(address, "POST", "/v2/models/both/infer", infer_body())[0] == 200


def test_the_deadline_counts_behind_the_model_too(bundle, monkeypatch):
    run_model = Service.run_model

    async def run_until_the_deadline(service, request, *arguments):
        outputs = await run_model(service, request, *arguments)
        service.get_record(request).deadline = asyncio.get_running_loop().time()
        return outputs

    monkeypatch.setattr(Service, "run_model", run_until_the_deadline)
    with running([bundle]) as (address, _):
        status, _, answer = ask(address, "POST", "/v2/models/both/infer", infer_body())
    assert (status, answer) == (504, {"error": "the deadline passed before the answer was ready"})


def test_a_page_of_another_site_unloads_no_model(bundle):
    """A browser posts there without asking, from any page; it says so by Origin, and no page knows the key."""
    page, path = {"origin": "http://elsewhere.example"}, "/v2/repository/models/both/"
    with running([bundle], model_control=True) as (address, service):
        for action in ("unload", "load"):
            status, _, answer = ask(address, "POST", path + action, b"", page)
            assert (status, answer["error"][:19]) == (403, "a web page (Origin)")
        assert list(service.models) == ["both"]
        assert ask(address, "POST", path + "unload", b"")[0] == 200
    with running([bundle], model_control=True, key="secret") as (address, _):
        assert ask(address, "POST", path + "unload", b"", page)[0] == 401
        assert ask(address, "POST", path + "unload", b"", page | {"x-api-key": "secret"})[0] == 200


def test_the_memory_of_all_requests_is_bounded(bundle, monkeypatch):
    slow = Slow(monkeypatch)
    size = len(infer_body(batch=8))
    with running([bundle], max_memory=2 * size) as (address, service), concurrent.futures.ThreadPoolExecutor() as pool:
        slow.hold()
        asked = pool.submit(ask, address, "POST", "/v2/models/both/infer", infer_body(batch=8))
        eventually(lambda: slow.batches)
        assert service.memory.held == size
        status, _, answer = ask(address, "POST", "/v2/models/both/infer", infer_body(batch=9))
        assert (status, "all requests together" in answer["error"]) == (429, True)
        status, _, answer = ask(address, "POST", "/v2/models/both/infer", infer_body(batch=20))
        assert (status, "the request takes more" in answer["error"]) == (413, True)
        slow.open.set()
        assert asked.result()[0] == 200
        eventually(lambda: service.memory.held == 0)


def test_an_image_counts_as_the_model_takes_it(bundle):
    body = file()
    with running([bundle], max_memory=len(body) + 3 * 8 * 12 * 4 - 1) as (address, service):
        status, _, answer = ask(address, "POST", "/v1/classify", body)
        assert (status, answer.get("error", "")[:22]) == (413, "the request takes more")
        eventually(lambda: service.memory.held == 0)


def test_a_tensor_that_the_graph_would_blow_up_is_413(tmp_path):
    """A line of 4,000 pixels, resized to cover 9 x 13, is 36,000 wide."""
    pixels = {"name": "images", "datatype": "UINT8", "shape": [1, 1, 4000, 3], "data": [0] * 12000}
    body = json.dumps({"inputs": [pixels]})
    for most, expected in ((400_000, 200), (300_000, 413)):
        with running([means_bundle(tmp_path / "m", in_graph=True)], max_pixels=most) as (address, _):
            assert ask(address, "POST", "/v2/models/m/infer", body)[0] == expected


def test_no_more_images_run_together_than_the_graph_may_resize(tmp_path, monkeypatch):
    """The bound holds for a run, not for each image: twice 324,000 pixels fit."""
    slow = Slow(monkeypatch)
    pixels = {"name": "images", "datatype": "UINT8", "shape": [3, 1, 4000, 3], "data": [0, 90, 0] * 12000}
    with running([means_bundle(tmp_path / "m", in_graph=True)], max_pixels=700_000, threads=1) as (address, _):
        slow.batches.clear()
        status, _, answer = ask(address, "POST", "/v2/models/m/infer", json.dumps({"inputs": [pixels]}))
        assert (status, answer["outputs"][0]["shape"], slow.batches) == (200, [3, 3], [2, 1])
        assert answer["outputs"][0]["data"] == [0, 90, 0] * 3


def test_an_image_for_a_network_of_any_size_has_at_most_four_times_its_own_pixels(tmp_path):
    with running([means_bundle(tmp_path / "m", size=("height", "width"))]) as (address, _):
        for width, expected in ((4 * 12, 200), (4 * 12 + 1, 413)):
            tensor = {"name": "images", "datatype": "FP32", "shape": [1, 3, 8, width], "data": [0] * 3 * 8 * width}
            status, _, answer = ask(address, "POST", "/v2/models/m/infer", json.dumps({"inputs": [tensor]}))
            assert status == expected
        assert answer == {"error": "an image of 49 x 8 has more than 4 times the pixels of 12 x 8"}


def test_a_body_counts_as_it_was_sent(bundle):
    body = infer_body()
    with running([bundle], max_memory=len(body)) as (address, _):
        assert ask(address, "POST", "/v2/models/both/infer", body)[0] == 200
        status, _, answer = ask(address, "POST", "/v2/models/both/infer", body + b" ")
        assert (status, answer.get("error", "")[:22]) == (413, "the request takes more")


def test_tensors_are_answered_as_they_are_whatever_codings_the_client_takes(server):
    connection = http.client.HTTPConnection(server, timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", "/v2/models/both/infer", infer_body(), {"accept-encoding": "gzip, deflate"})
        answer = connection.getresponse()
        assert answer.headers["content-encoding"] is None
        assert json.loads(answer.read())["model_name"] == "both"


def test_only_so_many_requests_are_read_at_a_time(bundle):
    """Twice the queue; health is always answered."""
    with running([bundle], queue=1) as (address, _):
        host, port = address.split(":")
        half = b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n"
        slow = [socket.create_connection((host, int(port))) for _ in range(2)]
        try:
            for connection in slow:
                connection.sendall(half)
            status, end = 0, time.monotonic() + 20
            while status != 429 and time.monotonic() < end:
                status, headers, answer = ask(address, "POST", "/v1/classify", file())
            assert (status, headers["retry-after"]) == (429, "1")
            assert answer["error"] == "2 requests are under way; try again in a second"
            assert ask(address, "GET", "/v2/health/ready")[0] == 200
        finally:
            for connection in slow:
                connection.close()


def test_a_client_that_leaves_is_dropped_from_the_queue(bundle, monkeypatch):
    slow = Slow(monkeypatch)
    with running([bundle], threads=1) as (address, service), concurrent.futures.ThreadPoolExecutor() as pool:
        slow.hold()
        running_one = pool.submit(ask, address, "POST", "/v2/models/both/infer", infer_body())
        eventually(lambda: slow.batches)
        host, port = address.split(":")
        body = infer_body(batch=5)
        with socket.create_connection((host, int(port))) as leaving:
            leaving.sendall(
                b"POST /v2/models/both/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            eventually(lambda: waiting(service) == 5)
        eventually(lambda: waiting(service) == 0)
        slow.open.set()
        assert running_one.result()[0] == 200
        assert slow.batches == [1]
        eventually(lambda: counted(service, "499") == 1)


def waiting(service):
    return service.metrics.registry.get_sample_value("ehm_queue_images", {"model": "both"})


def counted(service, status):
    labels = {"model": "both", "route": "/v2/models/{model}/infer", "status": status}
    return service.metrics.registry.get_sample_value("ehm_requests_total", labels)


def test_a_slow_body_is_408(bundle):
    with running([bundle], timeout=0.2) as (address, _):
        host, port = address.split(":")
        with socket.create_connection((host, int(port)), timeout=20) as slow:
            slow.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
            assert slow.recv(100).startswith(b"HTTP/1.1 408 ")


def test_a_failing_model_fails_its_requests_alone(bundle, monkeypatch, caplog):
    run = Predictor.run

    def failing(predictor, images, names=()):
        if len(images) > 1 and images.max() > 1:
            raise RuntimeError("out of memory")
        return run(predictor, images, names)

    monkeypatch.setattr(Predictor, "run", failing)
    with running([bundle]) as (address, _):
        bad = np.full((2, 3, 8, 12), 9, np.float32).tobytes()
        tensor = {
            "name": "images",
            "shape": [2, 3, 8, 12],
            "datatype": "FP32",
            "parameters": {"binary_data_size": len(bad)},
        }
        head = json.dumps({"inputs": [tensor]}).encode()
        sent = {"inference-header-content-length": str(len(head))}
        status, _, answer = ask(address, "POST", "/v2/models/both/infer", head + bad, sent)
        assert (status, answer) == (500, {"error": "the model failed on this batch: out of memory"})
        assert ask(address, "POST", "/v2/models/both/infer", infer_body())[0] == 200


def test_a_mistake_of_ours_is_answered_too(bundle, monkeypatch, caplog):
    with running([bundle]) as (address, service), caplog.at_level(logging.ERROR, "ehm.serve"):
        monkeypatch.setattr(service, "answer_image", None)
        status, headers, answer = ask(address, "POST", "/v1/embed", file(), {"x-request-id": "abc"})
        assert (status, headers["x-request-id"]) == (500, "abc")
        assert answer == {"error": "the server failed on this request; its log has the reason under abc"}
        assert "request abc failed" in caplog.text
        assert "Traceback" in caplog.text


def test_the_api_key_guards_all_but_health_and_metrics(bundle):
    with running([bundle], key="secret") as (address, _):
        for path in ("/v2/health/live", "/v2/health/ready", "/metrics", "/docs", "/openapi.json"):
            assert ask(address, "GET", path)[0] == 200
        for headers in ({}, {"x-api-key": "Secret"}, {"authorization": "Basic secret"}, {"x-api-key": "sécret"}):
            status, answered, answer = ask(address, "POST", "/v1/classify", file(), headers)
            assert (status, answered["www-authenticate"], list(answer)) == (401, "Bearer", ["error"])
        for headers in ({"authorization": "Bearer secret"}, {"x-api-key": "secret"}):
            assert ask(address, "POST", "/v1/classify", file(), headers)[0] == 200


def test_metrics_are_prometheus_text_and_count(bundle):
    with running([bundle]) as (address, _):
        for _ in range(3):
            assert ask(address, "POST", "/v2/models/both/infer", infer_body(batch=2))[0] == 200
        assert ask(address, "POST", "/v2/models/both/infer", b"")[0] == 400
        assert ask(address, "POST", "/v2/models/other/infer", b"")[0] == 404
        text = ask(address, "GET", "/metrics")[2].decode()
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    route = "/v2/models/{model}/infer"
    assert samples["ehm_requests_total", route, "200", "both"] == 3
    assert samples["ehm_requests_total", route, "400", "both"] == 1
    assert samples["ehm_requests_total", "", route, "404"] == 1
    assert samples["ehm_batch_images_count", "both"] == 3
    assert samples["ehm_batch_images_sum", "both"] == 6
    assert samples["ehm_queue_images", "both"] == 0
    for name in ("queue", "inference", "request"):
        assert samples[f"ehm_{name}_seconds_count", "both"] >= 3
    (info,) = [sample for sample in samples if sample[0] == "ehm_model_info"]
    assert {"both", "classification", "float32", "CPUExecutionProvider"} < set(info)
    assert samples["process_resident_memory_bytes",] > 0


@pytest.mark.parametrize("formatter", [_Json(), _Text()])
def test_a_request_is_one_line_that_its_client_cannot_break(server, formatter, caplog):
    given = 'a" status=200\\'
    with caplog.at_level(logging.INFO, "ehm.serve"):
        _, own, _ = ask(server, "POST", "/v1/classify?top=1", file(), {"x-request-id": "seven-7"})
        _, made, made_answer = ask(server, "GET", "/x%0Ay%22z", None, {"x-request-id": given})
        eventually(lambda: len(caplog.records) == 2)  # the line is written after the answer
    assert own["x-request-id"] == "seven-7"
    assert made["x-request-id"] not in ("", given)
    first, second = map(formatter.format, caplog.records)
    assert "\n" not in first + second
    if isinstance(formatter, _Json):
        line = json.loads(first)
        assert (line["id"], line["model"], line["status"], line["batch"]) == ("seven-7", "both", 200, 1)
        assert line["ms"] > 0
        assert json.loads(second)["path"] == '/x\ny"z'
        assert "error" not in line
        assert json.loads(second)["error"] == made_answer["error"]
    else:
        assert ' id="seven-7" method="POST" path="/v1/classify" status=200 model="both" ms=' in first
        assert r'path="/x\ny\"z" status=404' in second


def test_a_description_has_names_answers_and_the_key(bundle):
    operations = {}
    for key in (None, "secret"):
        with running([bundle], key=key) as (address, _):
            schema = ask(address, "GET", "/openapi.json")[2]
        for path, methods in schema["paths"].items():
            for operation in methods.values():
                asked = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"}
                assert asked <= ({"model", "top", "png", "masks", "score"} if path.startswith("/v1/") else set())
                content = operation["responses"]["200"].get("content", {})
                assert all(kind["schema"] for kind in content.values())
                assert operation["operationId"] not in operations.setdefault(key, set())
                operations[key].add(operation["operationId"])
        versioned = schema["paths"]["/v2/models/{model}/versions/{version}"]["get"]
        assert [(each["name"], each["in"]) for each in versioned["parameters"]] == [
            ("model", "path"),
            ("version", "path"),
        ]
        assert schema.get("security") == (None if key is None else [{"bearer": []}, {"key": []}])
        assert schema["paths"]["/v2/health/live"]["get"].get("security") == (None if key is None else [])
    assert schema["components"]["securitySchemes"].keys() == {"bearer", "key"}
    assert {"model_infer", "model_infer_of_version", "classify"} < operations[None] == operations["secret"]


@pytest.mark.parametrize("path", ["/", "/v2/health/live", "/v2/health/ready", "/static/page.js"])
def test_head_is_get_without_a_body_where_probes_ask(server, path):
    with contextlib.closing(http.client.HTTPConnection(server, timeout=30)) as connection:
        connection.request("HEAD", path)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"")
        connection.request("GET", path)  # on the same connection, where a body would be in the way
        assert int(answer.headers["content-length"]) == len(connection.getresponse().read())


def test_outputs_that_are_not_finite_are_a_sentence(bundle, monkeypatch):
    run = Predictor.run
    monkeypatch.setattr(Predictor, "run", lambda *given: {key: v * np.nan for key, v in run(*given).items()})
    with running([bundle]) as (address, _):
        for route, output in (("classify", "logits"), ("embed", "features")):
            status, _, answer = ask(address, "POST", f"/v1/{route}", file())
            assert (status, answer) == (500, {"error": f"the model both gave {output} that are not finite"})


def test_the_documentation_needs_no_network(server):
    page = ask(server, "GET", "/docs")[2].decode()
    assert "POST /v2/models/{model}/infer" in page
    assert "://" not in page


def test_infer_is_there_for_other_routes(bundle):
    """The page of the server builds on inference by name."""
    with running([bundle]) as (_, service):

        async def main():
            images, means = picture(3, batch=2)
            found = await service.infer("both", images, ["features"])
            assert list(found) == ["features"]
            assert np.allclose(found["features"], means, atol=1e-5)
            with pytest.raises(RequestError, match="no output 'x', only logits, features"):
                await service.infer("both", images, ["x"])

        assert list(service.models) == ["both"]
        asyncio.run(main())
