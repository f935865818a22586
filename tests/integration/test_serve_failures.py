"""Failures of the model and of the server: what the client is told, and the line that the log has of each request."""

import json
import logging

import numpy as np
import pytest
from server_requests import make_image_file, make_infer_body, send_request
from serving import running
from waiting import wait_until

from ehm.deploy.predict.predictor import Predictor
from ehm.deploy.serve.http.logs import _Json, _Text


def test_a_failing_model_fails_its_requests_alone(served_bundle, monkeypatch, caplog):
    run = Predictor.run

    def fail_on_large_values(predictor, images, names=()):
        if len(images) > 1 and images.max() > 1:
            raise RuntimeError("out of memory")
        return run(predictor, images, names)

    monkeypatch.setattr(Predictor, "run", fail_on_large_values)
    images = np.full((2, 3, 8, 12), 9, np.float32)
    tensor = {"name": "images", "shape": images.shape, "datatype": "FP32"}
    tensor["parameters"] = {"binary_data_size": images.nbytes}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    with running([served_bundle]) as (address, _):
        status, _, answer = send_request(address, "POST", "/v2/models/both/infer", head + images.tobytes(), headers)
        assert (status, answer) == (500, {"error": "the model failed on this batch: out of memory"})
        assert send_request(address, "POST", "/v2/models/both/infer", make_infer_body()).status == 200


def test_outputs_that_are_not_finite_are_a_sentence(served_bundle, monkeypatch):
    run = Predictor.run

    def run_to_nan(*arguments):
        return {name: values * np.nan for name, values in run(*arguments).items()}

    monkeypatch.setattr(Predictor, "run", run_to_nan)
    with running([served_bundle]) as (address, _):
        for route, output in (("classify", "logits"), ("embed", "features")):
            status, _, answer = send_request(address, "POST", f"/v1/{route}", make_image_file())
            assert (status, answer) == (500, {"error": f"the model both gave {output} that are not finite"})


def test_a_mistake_of_ours_is_answered_too(served_bundle, monkeypatch, caplog):
    with running([served_bundle]) as (address, service), caplog.at_level(logging.ERROR, "ehm.serve"):
        monkeypatch.setattr(service, "answer_image", None)
        status, headers, answer = send_request(address, "POST", "/v1/embed", make_image_file(), {"x-request-id": "abc"})
        assert (status, headers["x-request-id"]) == (500, "abc")
        assert answer == {"error": "the server failed on this request; its log has the reason under abc"}
        assert "request abc failed" in caplog.text
        assert "Traceback" in caplog.text


@pytest.mark.parametrize("formatter", [_Json(), _Text()])
def test_a_request_is_one_line_that_its_client_cannot_break(limited_server, formatter, caplog):
    hostile = {"x-request-id": 'a" status=200\\'}
    with caplog.at_level(logging.INFO, "ehm.serve"):
        good = send_request(
            limited_server, "POST", "/v1/classify?top=1", make_image_file(), {"x-request-id": "seven-7"}
        )
        lost = send_request(limited_server, "GET", "/x%0Ay%22z", None, hostile)
        wait_until(lambda: len(caplog.records) == 2)  # the line is written after the answer
    assert good.headers["x-request-id"] == "seven-7"
    assert lost.headers["x-request-id"] not in ("", hostile["x-request-id"])
    first, second = map(formatter.format, caplog.records)
    assert "\n" not in first + second
    if isinstance(formatter, _Json):
        line = json.loads(first)
        assert (line["id"], line["model"], line["status"], line["batch"]) == ("seven-7", "both", 200, 1)
        assert line["ms"] > 0
        assert json.loads(second)["path"] == '/x\ny"z'
        assert "error" not in line
        assert json.loads(second)["error"] == lost.body["error"]
    else:
        assert ' id="seven-7" method="POST" path="/v1/classify" status=200 model="both" ms=' in first
        assert r'path="/x\ny\"z" status=404' in second
