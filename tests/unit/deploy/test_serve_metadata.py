"""Metadata of the Open Inference Protocol for every kind of bundle; datatypes as its specification names them."""

from typing import get_args

import numpy as np
import pytest

from ehm.deploy.bundle.manifest import Manifest, TensorRecord
from ehm.deploy.serve.routes.protocol import InferRequest, OutputRequest, describe_model, encode_response

PIXELS = ("uint8", "NHWC", ["batch", "height", "width", 3], "UINT8", [-1, -1, -1, 3])
DEEP_PIXELS = ("uint16", "NHWC", ["batch", "height", "width", 7], "UINT16", [-1, -1, -1, 7])
IMAGES = ("float32", "NCHW", ["batch", 3, 8, 12], "FP32", [-1, 3, 8, 12])
ONE = ("float32", "NCHW", [1, 3, 8, 12], "FP32", [1, 3, 8, 12])
ANY = ("float32", "NCHW", ["batch", 3, "height", "width"], "FP32", [-1, 3, -1, -1])
LOGITS = ("float32", "NC", ["batch", 2], "FP32", [-1, 2])
FEATURES = ("float32", "NC", ["batch", 5], "FP32", [-1, 5])
PATCHES = ("float32", "NCHW", ["batch", 5, 2, 3], "FP32", [-1, 5, 2, 3])
SCORES = ("float32", "NCHW", ["batch", 2, 8, 12], "FP32", [-1, 2, 8, 12])
BOXES = ("float32", "NC", ["objects", 4], "FP32", [-1, 4])
LABELS = ("int64", "N", ["objects"], "INT64", [-1])
CERTAINTIES = ("float32", "N", ["objects"], "FP32", [-1])
MASKS = ("float32", "NHW", ["objects", 28, 28], "FP32", [-1, 28, 28])
FIT = {"shorter": 8, "longer": 12, "threshold": 0.5}
WINDOWS = {"scale": None, "stride": [4, 4]}
KINDS = {
    "classifier": ("classification", IMAGES, {"logits": LOGITS}),
    "encoder": ("features", IMAGES, {"features": FEATURES}),
    "patches": ("features", ANY, {"patches": PATCHES}),
    "multi": ("classification", PIXELS, {"logits": LOGITS, "features": FEATURES, "patches": PATCHES}),
    "seven channels": ("features", DEEP_PIXELS, {"features": FEATURES}),
    "segmenter": ("segmentation", IMAGES, {"scores": SCORES}),
    "detector": ("detection", ONE, {"boxes": BOXES, "labels": LABELS, "scores": CERTAINTIES}),
    "masks": ("detection", ONE, {"boxes": BOXES, "labels": LABELS, "scores": CERTAINTIES, "masks": MASKS}),
}


def record(name, tensor):
    dtype, layout, shape, *_ = tensor
    return {"name": name, "dtype": dtype, "layout": layout, "shape": shape}


def described(name, tensor):
    *_, datatype, shape = tensor
    return {"name": name, "datatype": datatype, "shape": shape}


@pytest.mark.parametrize("kind", KINDS)
def test_it_names_every_tensor_with_its_datatype(kind):
    task, images, outputs = KINDS[kind]
    manifest = Manifest.model_validate(
        {
            "task": task,
            "models": {"float32": {"file": "model.onnx", "opset": 17, "operators": {}}},
            "input": record("images", images),
            "outputs": [record(name, tensor) for name, tensor in outputs.items()],
            "preprocessing": {"image_size": (8, 12), "cover": (8, 12), "mean": (0, 0, 0), "std": (1, 1, 1)},
            "fit": FIT if task == "detection" else None,
            "windows": WINDOWS if task == "segmentation" else None,
            "labels": [] if task == "features" else ["cat", "dog"],
            "source": {"checkpoint": "", "kind": "", "sha256": ""},
            "versions": {},
            "parity": {"reference": "", "runtime": "", "tolerance": 0, "max_abs": 0, "cosine": 1, "cases": []},
        }
    )
    assert describe_model(manifest, "m", "1") == {
        "name": "m",
        "versions": ["1"],
        "platform": "onnx_onnxv1",
        "inputs": [described("images", images)],
        "outputs": [described(name, tensor) for name, tensor in outputs.items()],
    }


def test_every_type_that_a_manifest_can_name_is_known():
    known = {tensor[0] for _, images, outputs in KINDS.values() for tensor in (images, *outputs.values())}
    assert known == set(get_args(TensorRecord.model_fields["dtype"].annotation))


def test_values_are_answered_in_their_own_type():
    request = InferRequest(np.zeros((1, 3, 8, 12), np.float32), (OutputRequest("labels", binary=True),))
    body, head = encode_response(request, {"labels": np.array([[3, -1]])}, "m", "1")
    assert b'"datatype":"INT64","shape":[1,2]' in body[:head]
    assert body[head:] == (3).to_bytes(8, "little") + (-1).to_bytes(8, "little", signed=True)
