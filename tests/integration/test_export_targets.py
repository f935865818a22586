"""Targets of a graph, and images of any size in a plain ViT, against exports at each of those sizes."""

import numpy as np
import onnx
import onnxruntime
import pytest
from checkpoints import classifier, pretrained

from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.export import export
from ehm.deploy.predict.predictor import Predictor
from ehm.errors import ConfigError

SIZE = (48, 64)


CANN = {
    *("Add", "Concat", "Conv", "Div", "Erf", "Gather", "Gemm", "MatMul", "Mul", "Pad", "ReduceMean", "Reshape"),
    *("Slice", "Softmax", "Split", "Sqrt", "Sub", "Transpose"),
}
"""Operators of a transformer in ONNX Runtime's list for CANN (cann_graph.cc, v1.24.4); LayerNormalization is not."""


def images(size, batch=2):
    return np.random.default_rng(0).normal(size=(batch, 3, *size)).astype(np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return classifier(tmp_path_factory.mktemp("run"), SIZE)


def test_the_graph_for_onnxruntime_has_its_attention_and_gives_the_same(run, tmp_path):
    found = {}
    for target in ("portable", "ascend", "onnxruntime"):
        bundle = export(run, head="multi", out=tmp_path / target, overrides=[f"target={target}"])
        manifest = Bundle.open(bundle).manifest
        record = manifest.models["float32"]
        model = onnx.load(bundle / "model.onnx")
        onnx.checker.check_model(model, full_check=True)
        assert manifest.target == target
        assert record.opset == 17
        fused = target == "onnxruntime"
        assert record.domains == ({"com.microsoft": 1} if fused else {})
        assert record.operators.get("com.microsoft.Attention", 0) == (1 if fused else 0)
        assert record.operators.get("Softmax", 0) == (0 if fused else 1)
        assert {entry.domain for entry in model.opset_import} == {"", *record.domains}
        found[target] = Predictor(bundle).run(images(SIZE))
    for name, values in found["portable"].items():
        for target in ("ascend", "onnxruntime"):
            np.testing.assert_allclose(found[target][name], values, atol=1e-5)


@pytest.mark.parametrize("opset", [17, 18])
def test_cann_finds_every_operator_of_the_graph_for_ascend(run, tmp_path, opset):
    """Also behind the optimisations that ONNX Runtime makes before it asks its providers."""
    bundle = export(run, head="multi", out=tmp_path / "out", overrides=["target=ascend", f"opset={opset}"])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(bundle / "model.onnx", options, providers=["CPUExecutionProvider"])
    for file in (bundle / "model.onnx", tmp_path / "optimised.onnx"):
        assert {node.op_type for node in onnx.load(file).graph.node} <= CANN


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["target=ascend", "dynamic_size=true"],
            "target ascend: only the batch may be dynamic; leave dynamic_size out",
        ),
        (["target=ascend", "preprocessing=true"], "only the batch may be dynamic; leave preprocessing out"),
        (["target=ascend", "opset=19"], "target ascend: opset 19: its converter takes 17 and 18"),
        (["dynamic_size=true", "opset=17"], "opset 17: dynamic_size needs 18, the first with an antialiased resize"),
        (["dynamic_size=true", "preprocessing=true"], "one size; leave dynamic_size out"),
        (["target=tensorrt"], "target"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(run, tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        export(run, out=tmp_path / "bundle", overrides=overrides)
    assert list(tmp_path.iterdir()) == []


def test_a_network_of_timms_takes_images_of_one_size(tmp_path):
    with pytest.raises(ConfigError, match=r"dynamic_size: timm:test_convnext.* is no ViT of ours with added positions"):
        export("timm:test_convnext?pretrained=false", out=tmp_path / "bundle", overrides=["dynamic_size=true"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["portable", "onnxruntime"])
def test_images_of_any_size_give_what_an_export_at_that_size_gives(target, tmp_path):
    """Larger, smaller, its own, tall and wide ones; the bound that docs/export.md states."""
    path = pretrained(tmp_path, SIZE)
    given = ["dynamic_size=true", f"target={target}"]
    bundle = export(path, head="multi", out=tmp_path / "dynamic", overrides=given)
    manifest = Bundle.open(bundle).manifest
    assert manifest.input.shape == ("batch", 3, "height", "width")
    assert manifest.input.smallest == 16  # and fails below that
    with pytest.raises(Exception, match=r"(?i)onnxruntime|node|shape"):
        Predictor(bundle).run(images((15, 64)))
    assert manifest.output("patches").shape == ("batch", 32, "rows", "columns")
    assert manifest.models["float32"].opset == 18
    for size in (SIZE, (96, 96), (32, 16), (16, 128), (160, 48)):
        there = [f"model.image_size={list(size)}"]
        fixed = export(path, head="multi", out=tmp_path / "fixed", overrides=there)
        expected, found = Predictor(fixed).run(images(size)), Predictor(bundle).run(images(size))
        assert found["patches"].shape == (2, 32, size[0] // 16, size[1] // 16)
        for name, values in expected.items():
            assert values.std() > 0.1
            np.testing.assert_allclose(found[name], values, atol=2e-5)
