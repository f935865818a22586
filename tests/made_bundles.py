"""Bundles made by hand: a small network with any inputs and outputs, without a framework or an export.

And Triton's view of what becomes of one.
"""

import importlib.util
from pathlib import Path

import numpy as np
import onnx
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper

from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import Manifest
from ehm.deploy.bundle.staging import stage_bundle

LABELS = ["red", 'a "quoted"\nclass', "Käfer"]
OUTPUTS = {
    "logits": ("NC", 3),
    "features": ("NC", 3),
    "patches": ("NCHW", 3, 2, 2),
    "visual_tokens": ("NLC", 3, 5),
}
LANGUAGE = {"source": "tiny", "model_type": "llama", "width": 5, "weights": "1" * 64, "before": "<Img> "}
LANGUAGE |= {"after": "</Img>", "prompt": "Question: {question} Answer:"}
MEAN = (0.5, 0.4, 0.3)
STD = (0.2, 0.25, 0.5)
PREPROCESSING = {"image_size": [28, 42], "cover": [32, 48], "mean": MEAN, "std": STD}
TASKS = {"logits": "classification", "visual_tokens": "visual_tokens"}
IMAGES = {"name": "images", "dtype": "float32", "layout": "NCHW", "shape": ("batch", 3, 28, 42)}
PIXELS = {"name": "images", "dtype": "uint8", "layout": "NHWC", "shape": ("batch", "height", "width", 3)}


def write_network(path, images, outputs, external=False):
    """Write a network that gives the means of the three channels, in the shape of each output."""
    kind = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}[images["dtype"]]
    axes = [2, 3] if images["layout"] == "NCHW" else [1, 2]
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["means"], axes=axes, keepdims=0),
        helper.make_node("ReduceMean", ["ones"], ["one"], axes=[0], keepdims=0),
        helper.make_node("Mul", ["means", "one"], ["scaled"]),
    ]
    constants = [numpy_helper.from_array(np.ones((16, 3), np.float32), "ones")]
    results = []
    for name in outputs:
        _, *shape = OUTPUTS[name]
        constants += [numpy_helper.from_array(np.array([-1, 3, 1, 1][: len(shape) + 1]), f"{name}.first")]
        constants += [numpy_helper.from_array(np.array([1, *shape]), f"{name}.shape")]
        nodes += [helper.make_node("Reshape", ["scaled", f"{name}.first"], [f"{name}.as"])]
        nodes += [helper.make_node("Expand", [f"{name}.as", f"{name}.shape"], [name])]
        results += [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])]
    inputs = [helper.make_tensor_value_info("images", kind, list(images["shape"]))]
    graph = helper.make_graph(nodes, "means", inputs, results, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(made, path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=128)


def make_manifest(images=IMAGES, outputs=("logits",), precisions=("float32",), task=None, **changes):
    """Return the manifest of a bundle of such networks; ``changes`` are values of the manifest's own keys."""
    tensors = [
        {"name": name, "dtype": "float32", "layout": OUTPUTS[name][0], "shape": ["batch", *OUTPUTS[name][1:]]}
        for name in outputs
    ]
    values = {
        "task": task or TASKS.get(outputs[0], "features"),
        "language": LANGUAGE if "visual_tokens" in outputs else None,
        "models": {name: {"file": name_file(name), "opset": 17, "operators": {}} for name in precisions},
        "input": images,
        "outputs": tensors,
        "preprocessing": PREPROCESSING,
        "labels": LABELS if "logits" in outputs else [],
        "thresholds": [0.5] * len(LABELS) if task == "multi_label" else [],
        "source": {"checkpoint": "run", "kind": "pretrain", "sha256": "0" * 64},
        "versions": {"ehm": "0"},
        "parity": {"reference": "", "runtime": "", "tolerance": 1e-4, "max_abs": 0, "cosine": 1, "cases": []},
    }
    return Manifest.model_validate({**values, **changes})


def name_file(precision):
    return "model.onnx" if precision == "float32" else f"model.{precision}.onnx"


def make_bundle(place, images=IMAGES, outputs=("logits",), precisions=("float32",), task=None, card=None, **changes):
    """Make a bundle, whose int8 network, if it has one, keeps its weights in a file of their own.

    ``card`` is the text of its README.md; ``changes`` are values of the manifest's own keys.
    """
    with stage_bundle(place) as folder:
        for precision in precisions:
            write_network(folder / name_file(precision), images, outputs, external=precision == "int8")
        if card is not None:
            (folder / "README.md").write_text(card, encoding="utf-8")
        Bundle.seal(folder, make_manifest(images, outputs, precisions, task, **changes))
    return Bundle.open(place)


def model_config(file):
    """Read a config.pbtxt as tritonclient's ModelConfig; the package itself would load gRPC."""
    place = importlib.util.find_spec("tritonclient").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("model_config_pb2", Path(place) / "grpc/model_config_pb2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return text_format.Parse(file.read_text(encoding="utf-8"), module.ModelConfig())
