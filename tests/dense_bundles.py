"""Bundles made by hand of a detector and of a segmenter, whose answers can be told from the image."""

import numpy as np
import onnx
from mean_colours import HOSTILE
from onnx import TensorProto, helper, numpy_helper

from ehm.data.eval_transform import EvalTransform
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import Manifest
from ehm.deploy.bundle.staging import stage_bundle

DETECTED = [
    {"label": "cell", "score": 0.9, "box": [20, 20, 80, 60]},
    {"label": HOSTILE, "score": 0.6, "box": [90, 40, 150, 110]},
    {"label": "cell", "score": 0.2, "box": [0, 80, 40, 120]},
]
"""Objects in any image of 160 x 120 pixels; the left half of the first one's box is its mask, all of the others'."""


def detector_bundle(path):
    """A detector that finds DETECTED: a network for 80 x 60 pixels, half the size of the image."""
    masks = np.ones((4, 28, 28), np.float32)
    masks[0, :, 14:] = 0
    values = {
        "boxes": np.array([[*each["box"]] for each in DETECTED] + [[0] * 4], np.float32) / 2,
        "labels": np.array([0, 1, 0, 0], np.int64),
        "scores": np.array([each["score"] for each in DETECTED] + [0], np.float32),
        "masks": masks,
    }
    layouts = {"boxes": "NC", "labels": "N", "scores": "N", "masks": "NHW"}
    nodes = [helper.make_node("Identity", [f"{name}.value"], [name]) for name in values]
    outputs = [
        {"name": name, "dtype": str(array.dtype), "layout": layouts[name], "shape": list(array.shape)}
        for name, array in values.items()
    ]
    constants = [numpy_helper.from_array(array, f"{name}.value") for name, array in values.items()]
    fit = {"shorter": 60, "longer": 80, "threshold": 0.05}
    return _seal(path, "detection", nodes, [1, 3, 60, 80], outputs, constants, fit=fit, labels=["cell", HOSTILE])


def segmenter_bundle(path):
    """A segmenter whose classes are red, green and blue: of each pixel the strongest channel."""
    shape = ["batch", 3, 16, 24]
    nodes = [helper.make_node("Identity", ["images"], ["scores"])]
    outputs = [{"name": "scores", "dtype": "float32", "layout": "NCHW", "shape": shape}]
    windows = {"scale": None, "stride": [16, 24]}
    return _seal(path, "segmentation", nodes, shape, outputs, [], windows=windows, labels=["red", "green", "blue"])


def _seal(path, task, nodes, shape, outputs, constants, **rest):
    kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    results = [helper.make_tensor_value_info(each["name"], kinds[each["dtype"]], each["shape"]) for each in outputs]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, task, [images], results, constants)
    values = {
        "task": task,
        "models": {"float32": {"file": "model.onnx", "opset": 17, "operators": {}}},
        "input": {"name": "images", "dtype": "float32", "layout": "NCHW", "shape": shape},
        "outputs": outputs,
        "preprocessing": {
            "image_size": shape[2:],
            "cover": EvalTransform(shape[2:]).cover,
            "mean": [0.5] * 3,
            "std": [0.25] * 3,
        },
        "source": {"checkpoint": "run", "kind": task, "sha256": "0" * 64},
        "versions": {},
        "parity": {"reference": "", "runtime": "", "tolerance": 1e-4, "max_abs": 0, "cosine": 1, "cases": []},
        **rest,
    }
    with stage_bundle(path) as folder:
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, folder / "model.onnx")
        Bundle.seal(folder, Manifest.model_validate(values))
    return path
