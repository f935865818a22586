"""A hand-made network whose outputs are mean colours, to be computed by hand, and an index of its features."""

import json

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image

from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import Manifest
from ehm.deploy.bundle.staging import stage_bundle
from ehm.deploy.predict.predictor import Predictor

HOSTILE = "<script>alert(1)</script>"
OUTPUTS = {"logits": ["batch", 3], "features": ["batch", 3], "patches": ["batch", 3, 4, 6]}


def multi_head(out, *outputs):
    """images (batch, 3, 16, 24) -> mean colours of 4 x 6 patches, and their mean as features and as logits."""
    nodes = [
        helper.make_node("AveragePool", ["images"], ["patches"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("ReduceMean", ["patches"], ["features"], axes=[2, 3], keepdims=0),
        helper.make_node("Identity", ["features"], ["logits"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 16, 24])
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, OUTPUTS[name]) for name in outputs]
    graph = helper.make_graph(nodes, "means", [images], results)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    classes = "logits" in outputs
    values = {
        "task": "classification" if classes else "features",
        "models": {"float32": {"file": "model.onnx", "opset": 17, "operators": {}}},
        "input": {"name": "images", "dtype": "float32", "layout": "NCHW", "shape": ["batch", 3, 16, 24]},
        "outputs": [
            {"name": name, "dtype": "float32", "layout": "NCHW" if name == "patches" else "NC", "shape": OUTPUTS[name]}
            for name in outputs
        ],
        "preprocessing": {"image_size": [16, 24], "cover": [18, 27], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.5]},
        "labels": [HOSTILE, "green", "blue"] if classes else [],
        "source": {"checkpoint": "run", "kind": "pretrain", "sha256": "0" * 64},
        "versions": {},
        "parity": {"reference": "", "runtime": "", "tolerance": 1e-4, "max_abs": 0, "cosine": 1, "cases": []},
    }
    with stage_bundle(out) as folder:
        onnx.save(model, folder / "model.onnx")
        Bundle.seal(folder, Manifest.model_validate(values))
    return out


def index_of(bundle, root):
    """Write what ``ehm predict --out`` does for ten photographs and an unreadable one, with features of the ten."""
    rng = np.random.default_rng(0)
    lines, rows = [], []
    predictor = Predictor(bundle)
    for number in range(11):
        file = root / "photographs" / ("a" if number % 2 else "b") / f"{number} {HOSTILE.replace('/', '')}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        lines.append({"image": str(file)})
        if number == 4:
            file.write_bytes(b"not an image")
            lines[-1]["error"] = "not an image of a known format"
            continue
        corners = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        picture = corners.resize((40, 30), Image.Resampling.BICUBIC)
        picture.save(file)
        rows.append(predictor.run(predictor.prepare(picture)[None])["features"][0])
    np.save(root / "features.npy", np.stack(rows))
    (root / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return root
