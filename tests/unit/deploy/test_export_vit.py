"""The ONNX graph of a ViT, written node by node, against torch's own export of timm's class with the same weights."""

import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from ehm.backends.torch.export.heads import Heads
from ehm.backends.torch.export.module import build_trained_vit
from ehm.backends.torch.learners.classification import add_probe_head
from ehm.backends.torch.models.vit import build_vit
from ehm.config.encoders import VitSpec
from ehm.config.inputs import InputSpec
from ehm.deploy.export.graphs import saving
from ehm.deploy.export.graphs.network import make_graph
from ehm.deploy.export.graphs.torch_export import make_onnx
from ehm.models.heads import list_outputs
from ehm.models.weights import Provenance, Weights

PLAIN = {
    *("Add", "Conv", "Div", "Erf", "Gather", "Gemm", "LayerNormalization", "MatMul", "Mul", "Pad", "ReduceMean"),
    *("Reshape", "Slice", "Softmax", "Split", "Sub", "Transpose"),
}
"""Each of them is registered by Ascend's converter at operator sets 17 and 18 (npu/cann_onnx_ops.tsv)."""
LABELS = ("a", "b", "c")


def make(pool="avg", labels=LABELS, fc_norm=None, probe=False, size=(32, 32)):
    """Random weights that give softmaxes, norms and GELUs something to do."""
    spec = VitSpec(size, 16, 48, 2, 3)
    model = build_vit(spec, len(labels), 0.0, pool, fc_norm)
    if probe:
        add_probe_head(model)
    rng = np.random.default_rng(5)
    arrays = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            arrays[name] = rng.uniform(0.01, 4, tensor.shape)
        elif not name.endswith("num_batches_tracked"):
            arrays[name] = rng.normal(float("norm" in name and name.endswith("weight")), 0.3, tensor.shape)
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    inputs = InputSpec((0.5,) * 3, (0.25,) * 3)
    return Weights(arrays, Provenance("origin", "classifier", "0" * 64, inputs, labels, pool), spec)


def outputs_of(weights):
    return list_outputs("auto", bool(weights.provenance.labels))


CASES = {
    "average": {},
    "class token": {"pool": "token", "size": (48, 32)},
    "probe": {"fc_norm": False, "probe": True},
    "features": {"labels": (), "fc_norm": False, "size": (32, 80)},
}


def write_vit(trained, path, opset=17, target="portable"):
    model = make_graph(trained, outputs_of(trained), opset, target)
    saving.save(model, path)
    return model


def run(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {"images": images})
    return outputs


@pytest.mark.parametrize("case", CASES)
def test_the_file_computes_what_torchs_export_and_torch_compute(case, tmp_path):
    trained = make(**CASES[case])
    module = build_trained_vit(trained)
    heads = Heads(module, outputs_of(trained))
    model = make_onnx(heads, image_size=trained.spec.image_size, outputs=outputs_of(trained))
    saving.save(model, tmp_path / "torch.onnx")
    for opset in (17, 18):
        write_vit(trained, tmp_path / f"{opset}.onnx", opset)
    for batch in (1, 2, 7):
        images = np.random.default_rng(batch).normal(size=(batch, 3, *trained.spec.image_size)).astype(np.float32)
        exported = run(tmp_path / "torch.onnx", images)
        with torch.inference_mode():
            computed = module(torch.from_numpy(images)).numpy()
        assert computed.shape == (batch, len(trained.provenance.labels) or 48)
        assert np.abs(computed).mean() > 0.1
        for opset in (17, 18):
            found = run(tmp_path / f"{opset}.onnx", images)
            assert np.abs(found - exported).max() < 2e-5
            assert np.abs(found - computed).max() < 2e-5


@pytest.mark.parametrize("opset", [17, 18, 19, 20])
def test_the_graph_is_what_converters_take(opset, tmp_path):
    names = set()
    for index, settings in enumerate(CASES.values()):
        path = tmp_path / f"{index}.onnx"
        trained = make(**settings)
        written = write_vit(trained, path, opset)
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert model == written
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
        assert model.ir_version <= 9  # ONNX Runtime 1.18, the oldest that is admitted, reads 10
        (images,), (outputs,) = model.graph.input, model.graph.output
        assert (images.name, outputs.name) == ("images", "logits" if trained.provenance.labels else "features")
        shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (images, outputs)]
        assert shapes == [["batch", 3, *trained.spec.image_size], ["batch", len(trained.provenance.labels) or 48]]
        names |= {node.op_type for node in model.graph.node}
        assert len(model.graph.node) <= 26 * trained.spec.depth + 10
        used = {name for node in model.graph.node for name in node.input}
        assert {tensor.name for tensor in model.graph.initializer} <= used
    assert names == PLAIN


def test_the_same_arrays_give_the_same_bytes_with_or_without_a_file_for_the_weights(tmp_path, monkeypatch):
    trained = make()
    for name in ("first", "second"):
        write_vit(trained, tmp_path / f"{name}.onnx")
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()
    monkeypatch.setattr(saving, "EMBED_LIMIT", 10_000)
    write_vit(trained, tmp_path / "aside.onnx")
    assert (tmp_path / "aside.onnx.data").stat().st_size > 100_000
    assert (tmp_path / "aside.onnx.data").stat().st_mode == (tmp_path / "aside.onnx").stat().st_mode
    images = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    assert np.array_equal(run(tmp_path / "aside.onnx", images), run(tmp_path / "first.onnx", images))


def test_constants_are_named_by_the_parameters_that_they_are_made_of(tmp_path):
    trained = make()
    model = write_vit(trained, tmp_path / "model.onnx")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert set(trained.arrays) - set(constants) == {"cls_token"}  # it adds to its position
    weight = trained.arrays["blocks.1.attn.qkv.weight"].copy()
    weight[:48] /= math.sqrt(48 / 3)
    assert np.array_equal(constants["blocks.1.attn.qkv.weight"], weight.T)
    assert np.array_equal(constants["blocks.1.mlp.fc2.weight"], trained.arrays["blocks.1.mlp.fc2.weight"].T)
    positions = trained.arrays["pos_embed"].copy()
    positions[0, 0] += trained.arrays["cls_token"][0, 0]
    assert np.array_equal(constants["pos_embed"], positions)
