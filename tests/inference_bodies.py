"""Requests of the Open Inference Protocol for a small model, and what that model would answer."""

import json

import numpy as np

from ehm.deploy.bundle.manifest import Manifest


def manifest(shape=("batch", 3, 1, 2), dtype="float32"):
    record = {"layout": "NC", "dtype": "float32"}
    return Manifest.model_validate(
        {
            "task": "classification",
            "models": {"float32": {"file": "model.onnx", "opset": 17, "operators": {}}},
            "input": {"name": "images", "layout": "NCHW", "dtype": dtype, "shape": shape},
            "outputs": [
                {"name": "logits", "shape": ("batch", 4), **record},
                {"name": "features", "shape": ("batch", 2), **record},
            ],
            "preprocessing": {"image_size": (1, 2), "cover": (1, 2), "mean": (0, 0, 0), "std": (1, 1, 1)},
            "labels": ("ant", "bee", "", "cow:calf"),
            "source": {"checkpoint": "", "kind": "", "sha256": ""},
            "versions": {},
            "parity": {"reference": "", "runtime": "", "tolerance": 0, "max_abs": 0, "cosine": 1, "cases": []},
        }
    )


NUMBERS = [0.5, -1.0, 2.0, 3.0, 4.0, 1e-3]
INPUT = {"name": "images", "shape": [1, 3, 1, 2], "datatype": "FP32", "data": NUMBERS}
OUTPUTS = {
    "logits": np.array([[1.1, 3.3, 0.5, 2.4], [0, 0, 0, 1]], np.float32),
    "features": np.array([[1, 2], [3, 4]], np.float32),
}


def body(**changes):
    return json.dumps({"inputs": [INPUT], **changes}).encode()


def changed(**changes):
    return body(inputs=[{**INPUT, **changes}])
