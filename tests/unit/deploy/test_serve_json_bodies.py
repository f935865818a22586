"""Inference requests in JSON: null for what is not set, and bodies so large that they are read in steps."""

import json
import struct

import numpy as np
import pytest
from inference_bodies import INPUT, NUMBERS, OUTPUTS, body, changed, manifest

from ehm.deploy.serve.routes import json_request
from ehm.deploy.serve.routes.protocol import InferRequest, OutputRequest, decode_request, encode_response
from ehm.errors import RequestError

IMAGES = np.float32(NUMBERS).reshape(1, 3, 1, 2).tolist()


@pytest.mark.parametrize(
    "request_body",
    [
        body(id=None, parameters=None, outputs=None),
        changed(parameters=None),
        body(outputs=[{"name": "logits", "parameters": None}, {"name": "features"}]),
        body(parameters={"binary_data_output": None, "timeout": None, "other": None}),
        body(
            outputs=[
                {"name": "logits", "parameters": {"binary_data": None, "classification": None}},
                {"name": "features"},
            ]
        ),
        changed(parameters={"binary_data_size": None, "shared_memory_region": None}),
    ],
)
def test_null_is_what_is_not_set(request_body):
    """protobuf's JSON of C# and Go, and Java's Jackson, write it for every field without a value."""
    found = decode_request(request_body, None, manifest())
    assert found.images.tolist() == IMAGES
    assert found.outputs == (OutputRequest("logits"), OutputRequest("features"))
    assert (found.id, found.timeout) == (None, None)


def test_null_beside_binary_data():
    head = changed(data=None, parameters={"binary_data_size": 24, "shared_memory_region": None})
    found = decode_request(head + struct.pack("<6f", *NUMBERS), len(head), manifest())
    assert found.images.tolist() == IMAGES


def large(batch, nested=False, dtype="float32"):
    """A request of so many images of 40 x 50 pixels, and these."""
    rng = np.random.default_rng(batch)
    shape = (batch, 3, 40, 50)
    images = rng.integers(0, 256, shape) if dtype == "uint8" else rng.standard_normal(shape).astype(np.float32)
    data = images.tolist() if nested else images.ravel().tolist()
    kind = {"float32": "FP32", "uint8": "UINT8"}[dtype]
    return {"name": "images", "shape": list(shape), "datatype": kind, "data": data}, images


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_large_bodies_are_read_as_small_ones(nested, dtype):
    tensor, images = large(4, nested, dtype)
    text = json.dumps({"id": '"data": [1]', "inputs": [tensor], "outputs": [{"name": "features"}]}).encode()
    assert len(text) > json_request._LARGE
    found = decode_request(text, None, manifest(("batch", 3, 40, 50), dtype))
    assert found.images.dtype == dtype
    assert np.array_equal(found.images, images)
    assert (found.id, found.outputs) == ('"data": [1]', (OutputRequest("features"),))


def replaced(old, new):
    tensor, _ = large(4)
    return json.dumps({"inputs": [tensor]}).replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "status", "sentence"),
    [
        (replaced('"data": [', '"data": [NaN, '), 400, "inputs.0.data: expected numbers"),
        (replaced('"data": [', '"data": ["a", '), 400, "inputs.0.data: expected numbers"),
        (replaced('"data": [', '"data": [1, '), 400, "takes 24000 values, not 24001"),
        (replaced('"data": [', '"data": [[1, 2], '), 400, "inputs.0.data: expected numbers"),
        (replaced('"data": [', '"data": [' + "[" * 5000), 400, "inputs.0.data: expected numbers"),
        (replaced("]}]}", "]}]"), 400, "the body is not JSON"),
        (
            json.dumps({"inputs": [{**INPUT, "data": ["a" * 100] * 11_000}]}),
            413,
            "send tensors in binary (binary_data_size)",
        ),
        (json.dumps({"inputs": [INPUT], "x": [1.5] * 300_000}), 413, "send tensors in binary (binary_data_size)"),
    ],
)
def test_what_is_wrong_with_a_large_body_is_said(text, status, sentence):
    with pytest.raises(RequestError) as refused:
        decode_request(text.encode(), None, manifest(("batch", 3, 40, 50)))
    assert refused.value.status == status
    assert sentence in str(refused.value)


def test_an_answer_is_the_json_of_its_parts():
    asked = InferRequest(np.zeros((2, 1), np.float32), (OutputRequest("logits"), OutputRequest("features")), id='a"b')
    raw, head = encode_response(asked, OUTPUTS, "m", "v")
    assert head is None
    assert json.loads(raw) == {
        "model_name": "m",
        "model_version": "v",
        "id": 'a"b',
        "outputs": [
            {"name": name, "datatype": "FP32", "shape": list(values.shape), "data": values.ravel().tolist()}
            for name, values in OUTPUTS.items()
        ],
    }
    many = {"logits": np.random.default_rng(0).standard_normal((50, 4000)).astype(np.float32)}
    asked = InferRequest(np.zeros((50, 1), np.float32), (OutputRequest("logits"),))
    raw, _ = encode_response(asked, many, "m", "v")
    assert json.loads(raw)["outputs"][0]["data"] == many["logits"].ravel().tolist()
