"""Bodies of the Open Inference Protocol, written by hand from its specification, and content codings."""

import contextlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inference_bodies import INPUT, NUMBERS, OUTPUTS, body, changed, manifest

from ehm.deploy.serve.routes.protocol import decode_request, describe_model, encode_response
from ehm.errors import RequestError


def test_json_tensors_flat_and_nested():
    for data in (NUMBERS, [[[[0.5, -1]], [[2, 3]], [[4, 0.001]]]]):
        found = decode_request(changed(data=data), None, manifest())
        assert found.images.dtype == np.float32
        assert found.images.tolist() == np.float32(NUMBERS).reshape(1, 3, 1, 2).tolist()
        assert [(o.name, o.binary, o.classes) for o in found.outputs] == [("logits", False, 0), ("features", False, 0)]
        assert (found.id, found.timeout) == (None, None)


def test_binary_tensors_are_little_endian_after_the_json():
    head = changed(data=None, parameters={"binary_data_size": 24})
    found = decode_request(head + struct.pack("<6f", *NUMBERS), len(head), manifest())
    assert found.images.tolist() == np.float32(NUMBERS).reshape(1, 3, 1, 2).tolist()


def test_a_raw_binary_request_is_one_image_and_wants_binary_outputs():
    found = decode_request(struct.pack("<6f", *NUMBERS), 0, manifest())
    assert found.images.shape == (1, 3, 1, 2)
    assert [(o.name, o.binary) for o in found.outputs] == [("logits", True), ("features", True)]
    with pytest.raises(RequestError, match="does not say the image's size"):
        decode_request(bytes(6), 0, manifest(("batch", "height", "width", 3), "uint8"))


def test_bytes_of_any_size():
    image = {"name": "images", "shape": [1, 1, 2, 3], "datatype": "UINT8", "data": [0, 1, 2, 253, 254, 255]}
    found = decode_request(body(inputs=[image]), None, manifest(("batch", "height", "width", 3), "uint8"))
    assert (found.images.dtype, found.images.tolist()) == (np.uint8, [[[[0, 1, 2], [253, 254, 255]]]])
    for wrong in ([0, 1, 2, 3, 4, 256], [0, 1, 2, 3, 4, -1], [0.5] * 6):
        with pytest.raises(RequestError, match="integers from 0 to 255"):
            decode_request(
                body(inputs=[{**image, "data": wrong}]), None, manifest(("batch", "height", "width", 3), "uint8")
            )


def test_parameters_of_request_and_outputs():
    wanted = [
        {"name": "features", "parameters": {"binary_data": False}},
        {"name": "logits", "parameters": {"classification": 2}},
    ]
    asked = body(id="7", outputs=wanted, parameters={"binary_data_output": True, "timeout": 1500000, "other": "x"})
    found = decode_request(asked, None, manifest())
    assert (found.id, found.timeout) == ("7", 1.5)
    assert [(o.name, o.binary, o.classes) for o in found.outputs] == [("features", False, 0), ("logits", True, 2)]


def response(outputs, **more):
    asked = decode_request(
        body(inputs=[{**INPUT, "shape": [2, 3, 1, 2], "data": NUMBERS * 2}], outputs=outputs, **more), None, manifest()
    )
    return encode_response(asked, OUTPUTS, "m", "abc", manifest().labels)


def test_a_json_response_has_the_specified_fields():
    raw, head = response([{"name": "features"}], id="7")
    assert head is None
    assert json.loads(raw) == {
        "model_name": "m",
        "model_version": "abc",
        "id": "7",
        "outputs": [{"name": "features", "datatype": "FP32", "shape": [2, 2], "data": [1.0, 2.0, 3.0, 4.0]}],
    }
    assert "id" not in json.loads(response([])[0])


def test_binary_outputs_follow_in_order_beside_json_ones():
    raw, head = response([{"name": "features", "parameters": {"binary_data": True}}, {"name": "logits"}])
    described = json.loads(raw[:head])["outputs"]
    assert described[0] == {
        "name": "features",
        "datatype": "FP32",
        "shape": [2, 2],
        "parameters": {"binary_data_size": 16},
    }
    assert described[1]["data"][:2] == [float(np.float32(1.1)), float(np.float32(3.3))]
    assert raw[head:] == struct.pack("<4f", 1, 2, 3, 4)


def test_classification_gives_value_index_label_as_triton_does():
    """Triton's documentation has this example; its values come from std::to_string, with six digits."""
    raw, _ = response([{"name": "logits", "parameters": {"classification": 3}}])
    (output,) = json.loads(raw)["outputs"]
    assert output["datatype"] == "BYTES"
    assert output["shape"] == [2, 3]
    assert output["data"][:3] == ["3.300000:1:bee", "2.400000:3:cow:calf", "1.100000:0:ant"]
    assert output["data"][3:] == ["1.000000:3:cow:calf", "0.000000:0:ant", "0.000000:1:bee"]
    raw, head = response([{"name": "features", "parameters": {"classification": 9, "binary_data": True}}])
    assert json.loads(raw[:head])["outputs"][0]["shape"] == [2, 2]
    texts = [b"2.000000:1", b"1.000000:0", b"4.000000:1", b"3.000000:0"]
    assert raw[head:] == b"".join(struct.pack("<I", len(text)) + text for text in texts)


def test_what_json_cannot_say_is_refused_and_binary_is_not():
    asked = decode_request(body(), None, manifest())
    with pytest.raises(RequestError, match=r"logits is not finite.*binary_data"):
        encode_response(asked, {name: np.full((1, 4), np.nan, np.float32) for name in OUTPUTS}, "m", "1")
    asked = decode_request(body(parameters={"binary_data_output": True}), None, manifest())
    assert encode_response(asked, {name: np.full((1, 4), np.nan, np.float32) for name in OUTPUTS}, "m", "1")[1]


def test_metadata_has_minus_one_for_dynamic_sizes():
    found = describe_model(manifest(("batch", "height", "width", 3), "uint8"), "m", "abc")
    assert found["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    assert found["outputs"][0] == {"name": "logits", "datatype": "FP32", "shape": [-1, 4]}
    assert (found["platform"], found["versions"]) == ("onnx_onnxv1", ["abc"])


@pytest.mark.parametrize(
    ("raw", "length", "sentence"),
    [
        (b"", None, "the body is empty"),
        (b"\xff\xfe", None, "not JSON"),
        (b"[" * 100_000, None, "not JSON"),
        (b"1" * 5000, None, "not JSON"),
        (b"[]", None, "valid dictionary"),
        (b"{}", None, "inputs: Field required"),
        (body(inputs=[]), None, "expected one, named 'images'"),
        (body(inputs=[INPUT, INPUT]), None, "expected one, named 'images'"),
        (changed(name="x"), None, "expected one, named 'images'"),
        (changed(datatype="FP16"), None, "expected FP32, not 'FP16'"),
        (changed(shape=[1, 3, 2, 1]), None, r"expected \[-1, 3, 1, 2\]"),
        (changed(shape=[1, 3, 2]), None, "shape"),
        (changed(shape=[0, 3, 1, 2], data=[]), None, "at least one image"),
        (changed(shape=[True, 3, 1, 2]), None, r"inputs\.0\.shape\.0"),
        (changed(shape=[-1, 3, 1, 2]), None, r"inputs\.0\.shape\.0"),
        (changed(shape=[10**30, 3, 1, 2]), None, "takes 6000"),
        (changed(data=NUMBERS[:-1]), None, "takes 6 values, not 5"),
        (changed(data=["1"] * 6), None, "expected numbers"),
        (changed(data=[True] * 6), None, "expected numbers"),
        (changed(data=[None] * 6), None, "expected numbers"),
        (changed(data=[[1, 2], [3]]), None, "expected numbers"),
        (changed(data=[10**400] * 6), None, "expected numbers"),
        (changed(data=[1e300] * 6), None, "too large for FP32"),
        (body().replace(b"0.001", b"NaN"), None, "NaN is not JSON"),
        (body().replace(b"0.001", b"1e999"), None, "too large for FP32"),
        (changed(data=None), None, "missing"),
        (changed(parameters={"binary_data_size": 24}), None, "not both"),
        (changed(data=None, parameters={"binary_data_size": 24}), None, "0 bytes follow"),
        (changed(data=None, parameters={"binary_data_size": "24"}), None, "0 bytes follow"),
        (changed(data=None, parameters={"shared_memory_region": "x"}), None, "shared memory"),
        (body() + bytes(3), len(body()), "3 bytes follow"),
        (body(), len(body()) + 1, "Inference-Header-Content-Length"),
        (bytes(23), 0, "takes 24 bytes, but 23"),
        (struct.pack("<6f", *NUMBERS[:-1], np.nan), 0, "images: expected finite numbers"),
        (struct.pack("<6f", *NUMBERS[:-1], -np.inf), 0, "images: expected finite numbers"),
        (body(outputs=[{"name": "x"}]), None, "expected one of logits, features"),
        (body(outputs=[{"name": "logits"}] * 2), None, "twice"),
        (body(outputs=[{"name": "logits", "parameters": {"shared_memory_region": "x"}}]), None, "shared memory"),
        (body(outputs=[{"name": "logits", "parameters": {"classification": -1}}]), None, "classification"),
        (body(outputs=[{"name": "logits", "parameters": {"classification": True}}]), None, "classification"),
        (body(outputs=[{"name": "logits", "parameters": {"binary_data": 1}}]), None, "true or false"),
        (body(parameters={"timeout": -1}), None, "microseconds"),
        (body(parameters={"timeout": 1.5}), None, "microseconds"),
        (body(id=7), None, "id: "),
    ],
)
def test_a_wrong_request_is_one_sentence(raw, length, sentence):
    with pytest.raises(RequestError, match=sentence) as refused:
        decode_request(raw, length, manifest())
    assert refused.value.status == 400
    assert len(str(refused.value)) < 400
    assert "\n" not in str(refused.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(["id", "parameters", "inputs", "outputs"])
OF_INPUT = st.sampled_from(["name", "shape", "datatype", "parameters", "data"])


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(FIELDS, JSON), st.dictionaries(OF_INPUT, JSON), st.none() | st.integers(0, 400))
def test_any_json_is_read_or_refused(changes, of_input, length):
    raw = json.dumps({"inputs": [{**INPUT, **of_input}], **changes}).encode()
    with contextlib.suppress(RequestError):
        assert decode_request(raw, length, manifest()).images.shape[1:] == (3, 1, 2)


def test_an_image_smaller_than_a_patch_is_refused():
    any_size = manifest(("batch", 3, "height", "width"))
    record = any_size.input.model_copy(update={"smallest": 4})
    any_size = any_size.model_copy(update={"input": record})
    for shape in ([1, 3, 3, 9], [1, 3, 9, 3]):
        with pytest.raises(RequestError, match=r"inputs\.0\.shape: expected at least 4 pixels each way"):
            decode_request(changed(shape=shape, data=[0] * 81), None, any_size)
    assert decode_request(changed(shape=[1, 3, 4, 5], data=[0] * 60), None, any_size).images.shape == (1, 3, 4, 5)
