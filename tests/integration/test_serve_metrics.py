"""Metrics: a model's latency is that of inference, and every refusal is counted under its model."""

import concurrent.futures
import json
import threading
from io import BytesIO

import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from serving import ask, means_bundle, picture, running

from ehm.deploy.predict.predictor import Predictor

INFER = "/v2/models/both/infer"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return means_bundle(tmp_path_factory.mktemp("bundles") / "both")


def infer_body():
    images, _ = picture(0)
    tensor = {"name": "images", "shape": images.shape, "datatype": "FP32", "data": images.ravel().tolist()}
    return json.dumps({"inputs": [tensor]})


def image_file():
    content = BytesIO()
    Image.new("RGB", (20, 16)).save(content, "PNG")
    return content.getvalue()


def read_samples(address):
    """Values by name and labels, as Prometheus' own client reads them."""
    text = ask(address, "GET", "/metrics")[1].decode()
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_probes_and_refusals_do_not_count_into_a_models_latency(bundle):
    with running([bundle]) as (address, _):
        for path in ("/v2/models/both", "/v2/models/both/ready", "/v2/models/both/config", "/v2/health/ready"):
            for _ in range(5):
                ask(address, "GET", path)
        for path in (INFER, "/v1/classify", "/v1/embed", "/v1/view"):
            assert ask(address, "POST", path, b"rubbish")[0] in (400, 422)
        assert ("ehm_request_seconds_count", "both") not in read_samples(address)
        for _ in range(3):
            assert ask(address, "POST", INFER, infer_body())[0] == 200
            assert ask(address, "POST", "/v1/classify", image_file())[0] == 200
        samples = read_samples(address)
    assert samples["ehm_request_seconds_count", "both"] == 6
    assert samples["ehm_requests_total", "/v2/models/{model}/ready", "200", "both"] == 5
    assert samples["ehm_requests_total", "/v2/models/{model}/infer", "400", "both"] == 1


def test_a_failure_of_the_model_counts_into_its_latency(bundle, monkeypatch):
    """Otherwise a model that answers nobody, or nobody in time (504), would look fast."""

    def fail(predictor, images, names=()):
        if images.any():  # not in the warm-up
            raise RuntimeError("out of memory")

    monkeypatch.setattr(Predictor, "run", fail)
    with running([bundle]) as (address, _):
        assert ask(address, "POST", INFER, infer_body())[0] == 500
        assert read_samples(address)["ehm_request_seconds_count", "both"] == 1


@pytest.mark.parametrize(
    ("path", "route", "body"),
    [
        (INFER, "/v2/models/{model}/infer", infer_body()),
        ("/v1/classify", "/v1/classify", b"x"),
        ("/v1/classify?model=both", "/v1/classify", b"x"),
    ],
)
def test_every_429_has_its_model_and_its_route(bundle, monkeypatch, path, route, body):
    """A full queue answers 429, and so does a server that has more under way than it may read."""
    started = threading.Event()
    go = threading.Event()
    run = Predictor.run

    def slow(predictor, images, names=()):
        started.set()
        assert go.wait(20)
        return run(predictor, images, names)

    go.set()  # for the warm-up
    monkeypatch.setattr(Predictor, "run", slow)
    with running([bundle], queue=1) as (address, service), concurrent.futures.ThreadPoolExecutor(8) as pool:
        go.clear()
        started.clear()
        running_one = pool.submit(ask, address, "POST", INFER, infer_body())
        assert started.wait(20)
        full = ask(address, "POST", INFER, infer_body())
        assert (full[0], b"the queue of 1 requests is full" in full[1]) == (429, True)
        monkeypatch.setattr(type(service), "crowded", property(lambda service: True))
        crowded = ask(address, "POST", path, body)
        assert (crowded[0], b"requests are under way" in crowded[1]) == (429, True)
        assert ask(address, "GET", "/v2/health/ready")[0] == 200
        go.set()
        assert running_one.result()[0] == 200
        samples = read_samples(address)
    refused = {
        labels: value for labels, value in samples.items() if labels[0] == "ehm_requests_total" and "429" in labels
    }
    assert sum(refused.values()) == 2
    assert all("both" in labels for labels in refused)
    assert refused["ehm_requests_total", route, "429", "both"] >= 1


@pytest.mark.parametrize(("crowded", "status"), [(False, 404), (True, 429)])
def test_names_that_clients_make_up_are_no_labels(bundle, monkeypatch, crowded, status):
    """Each would be a series of its own, which the server keeps for ever."""
    with running([bundle]) as (address, service):
        monkeypatch.setattr(type(service), "crowded", property(lambda service: crowded))
        for path in ("/v1/classify?model=stranger", "/v2/models/stranger/infer"):
            assert ask(address, "POST", path, b"x")[0] == status
        assert b"stranger" not in ask(address, "GET", "/metrics")[1]


def test_connections_are_counted(bundle):
    with running([bundle]) as (address, _):
        assert read_samples(address)["ehm_connections",] == 1
