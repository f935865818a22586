"""Metrics as Prometheus reads them: a model's latency is that of inference, and each refusal counts for its model."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families
from server_requests import make_image_file, make_infer_body, send_request
from serving import running
from slow_model import SlowModel
from waiting import wait_until

from ehm.deploy.predict.predictor import Predictor

INFER = "/v2/models/both/infer"


def read_samples(address):
    """Return values by name and labels, as Prometheus' own client reads them."""
    text = send_request(address, "GET", "/metrics").body.decode()
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_are_prometheus_text_and_count(served_bundle):
    with running([served_bundle]) as (address, _):
        for _ in range(3):
            assert send_request(address, "POST", INFER, make_infer_body(batch=2)).status == 200
        assert send_request(address, "POST", INFER, b"").status == 400
        assert send_request(address, "POST", "/v2/models/other/infer", b"").status == 404
        samples = read_samples(address)
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


def test_probes_and_refusals_do_not_count_into_a_models_latency(served_bundle):
    with running([served_bundle]) as (address, _):
        for path in ("/v2/models/both", "/v2/models/both/ready", "/v2/models/both/config", "/v2/health/ready"):
            for _ in range(5):
                send_request(address, "GET", path)
        for path in (INFER, "/v1/classify", "/v1/embed", "/v1/view"):
            assert send_request(address, "POST", path, b"rubbish").status in (400, 422)
        assert ("ehm_request_seconds_count", "both") not in read_samples(address)
        for _ in range(3):
            assert send_request(address, "POST", INFER, make_infer_body()).status == 200
            assert send_request(address, "POST", "/v1/classify", make_image_file()).status == 200
        samples = read_samples(address)
    assert samples["ehm_request_seconds_count", "both"] == 6
    assert samples["ehm_requests_total", "/v2/models/{model}/ready", "200", "both"] == 5
    assert samples["ehm_requests_total", "/v2/models/{model}/infer", "400", "both"] == 1


def test_a_failure_of_the_model_counts_into_its_latency(served_bundle, monkeypatch):
    """Otherwise a model that answers nobody, or nobody in time (504), would look fast."""

    def fail(predictor, images, names=()):
        if images.any():  # not in the warm-up
            raise RuntimeError("out of memory")

    monkeypatch.setattr(Predictor, "run", fail)
    with running([served_bundle]) as (address, _):
        assert send_request(address, "POST", INFER, make_infer_body()).status == 500
        assert read_samples(address)["ehm_request_seconds_count", "both"] == 1


@pytest.mark.parametrize(
    ("path", "route", "body"),
    [
        (INFER, "/v2/models/{model}/infer", make_infer_body()),
        ("/v1/classify", "/v1/classify", b"x"),
        ("/v1/classify?model=both", "/v1/classify", b"x"),
    ],
)
def test_every_429_has_its_model_and_its_route(served_bundle, monkeypatch, path, route, body):
    """A full queue answers 429, and so does a server that has more under way than it may read."""
    slow = SlowModel(monkeypatch)
    with running([served_bundle], queue=1) as (address, service), ThreadPoolExecutor(8) as pool:
        slow.hold()
        running_one = pool.submit(send_request, address, "POST", INFER, make_infer_body())
        wait_until(lambda: slow.batches)
        full = send_request(address, "POST", INFER, make_infer_body())
        assert (full.status, "the queue of 1 requests is full" in full.body["error"]) == (429, True)
        monkeypatch.setattr(type(service), "crowded", property(lambda service: True))
        crowded = send_request(address, "POST", path, body)
        assert (crowded.status, "requests are under way" in crowded.body["error"]) == (429, True)
        assert send_request(address, "GET", "/v2/health/ready").status == 200
        slow.release()
        assert running_one.result().status == 200
        samples = read_samples(address)
    refused = {
        labels: value for labels, value in samples.items() if labels[0] == "ehm_requests_total" and "429" in labels
    }
    assert sum(refused.values()) == 2
    assert all("both" in labels for labels in refused)
    assert refused["ehm_requests_total", route, "429", "both"] >= 1


@pytest.mark.parametrize(("crowded", "status"), [(False, 404), (True, 429)])
def test_names_that_clients_make_up_are_no_labels(served_bundle, monkeypatch, crowded, status):
    """Each would be a series of its own, which the server keeps for ever."""
    with running([served_bundle]) as (address, service):
        monkeypatch.setattr(type(service), "crowded", property(lambda service: crowded))
        for path in ("/v1/classify?model=stranger", "/v2/models/stranger/infer"):
            assert send_request(address, "POST", path, b"x").status == status
        assert b"stranger" not in send_request(address, "GET", "/metrics").body


def test_connections_are_counted(served_bundle):
    with running([served_bundle]) as (address, _):
        assert read_samples(address)["ehm_connections",] == 1
