"""Convolutions for chips that have none in float32, against ONNX Runtime's convolutions."""

import numpy as np
import onnx
import onnxruntime
import pytest
from checkpoints import classifier
from onnx import TensorProto, helper, numpy_helper

from ehm.cli import main
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.export.graphs.convolutions import write_convolutions_out


def make_network(*convolutions, size=(24, 36)):
    """Return a network of convolutions one after the other, each given by its weights and its attributes."""
    rng = np.random.default_rng(0)
    nodes, constants = [], []
    value = "images"
    for index, (shape, bias, attributes) in enumerate(convolutions):
        inputs = [value, f"weight{index}"]
        constants.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) / 9, inputs[1]))
        if bias:
            inputs.append(f"bias{index}")
            constants.append(numpy_helper.from_array(rng.standard_normal(shape[0]).astype(np.float32), inputs[2]))
        value = f"value{index}"
        nodes.append(helper.make_node("Conv", inputs, [value], value, **attributes))
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, *size])
    result = helper.make_tensor_value_info(value, TensorProto.FLOAT, ["batch", shape[0], "height", "width"])
    graph = helper.make_graph(nodes, "convolutions", [images], [result], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model, images):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


def rewritten(model):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    write_convolutions_out(copy)
    onnx.checker.check_model(copy, full_check=True)
    return copy


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sides", [(12, 12), (6, 4)])
def test_patches_are_multiplied_in_float32(sides, bias):
    model = make_network(((8, 3, *sides), bias, {"strides": sides, "kernel_shape": sides}))
    images = np.random.default_rng(1).standard_normal((3, 3, 24, 36)).astype(np.float32)
    product = rewritten(model)
    assert "Conv" not in {node.op_type for node in product.graph.node}
    np.testing.assert_allclose(run(product, images), run(model, images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "attributes"),
    [
        ((8, 3, 5, 5), {"pads": [2, 2, 2, 2]}),
        ((8, 3, 12, 12), {"strides": [12, 12], "pads": [1, 1, 1, 1]}),
        ((9, 1, 12, 12), {"strides": [12, 12], "group": 3}),
        ((8, 3, 10, 12), {"strides": [10, 12]}),  # 24 is no multiple of 10
    ],
)
def test_any_other_convolution_is_computed_in_float16(shape, attributes):
    model = make_network((shape, True, attributes), ((4, shape[0], 1, 1), True, {}))
    images = np.random.default_rng(1).standard_normal((2, 3, 24, 36)).astype(np.float32)
    narrow = rewritten(model)
    types = {tensor.data_type for tensor in narrow.graph.initializer}
    assert types == {TensorProto.FLOAT16}
    found, expected = run(narrow, images), run(model, images)
    np.testing.assert_allclose(found, expected, atol=2e-2)
    assert not np.array_equal(found, expected)


@pytest.mark.parametrize(("chip", "operators"), [("Ascend310P3", {"MatMul"}), ("Ascend910B3", {"MatMul", "Conv"})])
def test_an_export_for_such_a_chip_has_no_convolution(chip, operators, tmp_path):
    run = classifier(tmp_path / "run", (48, 64))
    command = ["export", str(run), "--target", "ascend", "--set", f"ascend.soc_version={chip}"]
    assert main([*command, "--out", str(tmp_path / "bundle")]) == 0
    found = Bundle.open(tmp_path / "bundle").manifest.models["float32"].operators
    assert operators == {"MatMul", "Conv"} & set(found)
