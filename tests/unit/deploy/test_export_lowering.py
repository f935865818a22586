"""Graphs of operator set 18 in operator set 17: what torch gives, and what cannot be lowered."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from oldest import run_in_oldest
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from ehm.deploy.export.graphs.lowering import InexpressibleError, lower_to_17
from ehm.deploy.export.graphs.torch_export import make_onnx
from ehm.errors import ExportError


class Uneven(torch.nn.Module):
    """Seven columns in three parts, of which the last has one, and eight rows in two."""

    def forward(self, images):
        left, middle, right = torch.chunk(images, 3, dim=3)
        upper, lower = torch.chunk(left * middle, 2, dim=2)
        return (torch.amax(upper + lower, dim=(2, 3)) + right.mean(dim=(2, 3)),)


class Shrunk(torch.nn.Module):
    """Activations resized with antialiasing, and constant positions, each by its own kind of interpolation."""

    def __init__(self):
        super().__init__()
        self.positions = torch.nn.Parameter(torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(3)))

    def forward(self, images):
        linear = functional.interpolate(images, size=(3, 9), mode="bilinear", antialias=True)
        cubic = functional.interpolate(images, size=(5, 3), mode="bicubic", antialias=True)
        positions = functional.interpolate(self.positions, size=(5, 3), mode="bicubic", antialias=True)
        return torch.cat([linear.flatten(1), (cubic + positions).flatten(1)], dim=1), cubic


@pytest.mark.parametrize(("module", "outputs"), [(Uneven(), ["means"]), (Shrunk(), ["pixels", "cubic"])])
def test_it_gives_what_torch_gives(module, outputs):
    images = torch.randn(2, 3, 8, 7, generator=torch.Generator().manual_seed(0))
    model = make_onnx(module, 17, image_size=(8, 7), outputs=outputs)
    onnx.checker.check_model(model, full_check=True)
    assert (model.opset_import[0].version, model.ir_version) == (17, 8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(outputs, {"images": images.numpy()})
    with torch.inference_mode():
        for values, expected in zip(found, module(images), strict=True):
            np.testing.assert_allclose(values, expected.numpy(), atol=1e-5)
    operators = [node.op_type for node in model.graph.node]
    assert "Resize" not in operators  # antialiasing came with operator set 18
    splits = [node for node in model.graph.node if node.op_type == "Split"]
    assert [len(node.input) for node in splits] == ([2, 1] if isinstance(module, Uneven) else [])


class Norms(torch.nn.Module):
    """A batch norm behind a linear layer, as in LeViT, and layer norms without a bias, as in MetaFormer."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.linear = torch.nn.Linear(7, 6, bias=False)
            self.second = torch.nn.Linear(6, 6, bias=False)
            self.third = torch.nn.Linear(6, 6, bias=False)
            self.batch_norm = torch.nn.BatchNorm1d(6)
            self.rows_norm = torch.nn.BatchNorm1d(24)
            self.layer_norm = torch.nn.LayerNorm(6, bias=False)
            for values in (*self.parameters(), *self.buffers()):
                if values.is_floating_point():
                    values.data.uniform_(0.5, 2)

    def forward(self, images):
        tokens = self.linear(images.flatten(1, 2))
        normed = self.batch_norm(tokens.flatten(0, 1)).reshape(tokens.shape)
        once = self.layer_norm(normed)
        return (self.rows_norm(self.second(once)) + self.third(once) + once,)


def test_norms_are_written_in_a_way_that_the_oldest_onnx_runtime_takes(tmp_path):
    images = torch.randn(2, 3, 8, 7, generator=torch.Generator().manual_seed(0))
    module = Norms().eval()
    model = make_onnx(module, 17, image_size=(8, 7), outputs=["tokens"])
    operators = {node.op_type: len(node.input) for node in model.graph.node}
    assert "BatchNormalization" not in operators
    assert operators["LayerNormalization"] == 3
    onnx.save(model, tmp_path / "model.onnx")
    (found,) = run_in_oldest([tmp_path / "model.onnx"], [images.numpy()], tmp_path)
    with torch.inference_mode():
        np.testing.assert_allclose(found["tokens"], module(images)[0].numpy(), atol=1e-5)


class Folded(torch.nn.Module):
    """Patches put together again: Col2Im, which came with operator set 18."""

    def forward(self, images):
        patches = functional.unfold(images, 2, stride=2)
        return (functional.fold(patches, (8, 6), 2, stride=2),)


def test_what_it_cannot_express_takes_operator_set_18_unless_17_was_asked_for(capsys):
    with pytest.raises(ExportError, match=r"Folded: operator set 17 has no operator Col2Im; .*--set opset=18"):
        make_onnx(Folded(), 17, image_size=(8, 6), outputs=["images2"])
    model = make_onnx(Folded(), 17, image_size=(8, 6), outputs=["images2"], raise_opset=True)
    assert (model.opset_import[0].version, model.ir_version) == (18, 8)
    assert "Written in opset 18: opset 17 has no operator Col2Im" in capsys.readouterr().out


def graph_of(node, shape=("batch", 4), constants=()):
    """A graph of operator set 18 with one node."""
    value, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y"))
    graph = helper.make_graph([node], "g", [value], [result], list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


AXES = numpy_helper.from_array(np.array([], np.int64), "axes")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (graph_of(helper.make_node("Mish", ["x"], ["y"])), "operator Mish"),
        (graph_of(helper.make_node("Split", ["x"], ["y", "z"], num_outputs=2)), "Split of a dimension"),
        (graph_of(helper.make_node("Pad", ["x", "pads", "", "axes"], ["y"]), constants=[AXES]), "Pad with 4 inputs"),
        (graph_of(helper.make_node("ReduceMax", ["x", "x"], ["y"])), "ReduceMax over axes that are computed"),
        (graph_of(helper.make_node("ScatterND", ["x", "x", "x"], ["y"], reduction="max")), "ScatterND that keeps"),
        (graph_of(helper.make_node("Resize", ["x", "", "s"], ["y"], axes=[1])), "Resize with axes"),
        (graph_of(helper.make_node("Resize", ["x", "", "s"], ["y"], antialias=1)), "Resize with antialiasing between"),
    ],
)
def test_what_cannot_be_lowered_is_named_and_stays(model, said):
    before = model.SerializeToString(deterministic=True)
    with pytest.raises(InexpressibleError, match=said):
        lower_to_17(model)
    assert model.SerializeToString(deterministic=True) == before


def test_a_reduction_over_no_axes_may_be_nothing():
    """Operator set 18, ``noop_with_empty_axes``: without axes nothing is reduced."""
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], noop_with_empty_axes=1)
    model = graph_of(node, constants=[AXES])
    lower_to_17(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x)
