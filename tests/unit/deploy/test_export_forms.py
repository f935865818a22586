"""Graphs of ViTs of made-up forms, which together have all that a form can have, against timm's classes."""

import numpy as np
import onnx
import onnxruntime
import pytest

from ehm.backends.torch.export.module import build_reference
from ehm.config.encoders import Rotary, VitForm, VitSpec
from ehm.deploy.export.graphs.network import make_graph
from ehm.models.heads import list_outputs
from ehm.models.parameters import list_classifier_shapes, list_encoder_shapes
from ehm.models.weights import Provenance, Weights

LABELS = ("a", "b", "c")
SIDE_BY_SIDE = Rotary(kind="eva", temperature=100, halves=False, reference_grid=(4, 4))
HALVES = Rotary(kind="dinov3")
OPERATORS = {
    *("Add", "Concat", "Conv", "Div", "Erf", "Gather", "Gemm", "LayerNormalization", "MatMul", "Mul", "Pad"),
    *("ReduceMean", "Reshape", "Sigmoid", "Slice", "Softmax", "Split", "Sqrt", "Sub", "Tanh", "Transpose"),
}
"""Each of them is registered by Ascend's converter at operator sets 17 and 18 (npu/cann_onnx_ops.tsv)."""
FORMS = {
    "norms": {
        "registers": 2,
        "prefix_positions": False,
        "norm_before": True,
        "norm_queries": True,
        "norm_values": True,
        "norm_mlp": True,
        "layer_scale": True,
        "mlp": "gelu_tanh",
    },
    "rms": {
        "class_token": False,
        "norm": "rms",
        "norm_patches": True,
        "norm_queries": True,
        "bias": False,
        "output_bias": False,
        "mlp": "swiglu_packed",
    },
    "registers alone": {"class_token": False, "registers": 3, "layer_scale": True, "mlp": "quick_gelu"},
    "side by side": {
        "rotary": SIDE_BY_SIDE,
        "registers": 1,
        "norm_queries": True,
        "norm_values": True,
        "norm_mlp": True,
        "layer_scale": True,
        "mlp": "swiglu",
    },
    "side by side, separate": {"rotary": SIDE_BY_SIDE, "norm": "rms", "separate_heads": True, "mlp": "swiglu_packed"},
    "nothing added": {"rotary": HALVES, "class_token": False, "added_positions": False, "norm_epsilon": 1e-3},
    "query": {"class_token": False, "attention_pool": True, "norm_epsilon": 1e-2},
    "query to all tokens": {"rotary": HALVES, "norm": "rms", "registers": 2, "bias": False, "attention_pool": True},
}
POOLS = {"norms": "token", "query": "map", "query to all tokens": "map"}
FUSED = ("registers alone", "query")
"""Forms whose attention ONNX Runtime has an operator of its own for."""


def make_weights(name):
    """Random weights under the names that the form should have."""
    form = VitForm.model_validate(FORMS[name])
    spec = VitSpec((32, 48), 16, 24, 2, 3, 8 / 3, form=form)
    pool = POOLS.get(name, "avg")
    shapes = list_encoder_shapes(spec, "fc_norm" if pool == "avg" else "norm", pool)
    shapes |= list_classifier_shapes("head", len(LABELS), spec.width, is_probe=False)
    rng = np.random.default_rng(3)
    arrays = {}
    for parameter, shape in shapes.items():
        is_scale = parameter.endswith(("weight", "gamma")) and len(shape) == 1
        arrays[parameter] = rng.normal(float(is_scale), 0.3, shape).astype(np.float32)
    return Weights(arrays, Provenance("origin", "classifier", labels=LABELS, pool=pool), spec)


@pytest.mark.parametrize("name", FORMS)
def test_a_graph_computes_what_timms_class_computes(name):
    weights = make_weights(name)
    outputs = list_outputs("multi", True)
    compute, _ = build_reference(weights, outputs, weights.spec.image_size)
    images = np.random.default_rng(4).normal(size=(3, 3, *weights.spec.image_size)).astype(np.float32)
    expected = compute(images)
    for opset, target in ((17, "portable"), (18, "ascend"), (17, "onnxruntime")):
        graph = make_graph(weights, outputs, opset, target)
        onnx.checker.check_model(graph, full_check=True)
        operators = {node.op_type for node in graph.graph.node}
        assert operators - {"Attention"} <= OPERATORS
        assert ("Attention" in operators) == (target == "onnxruntime" and name in FUSED)
        session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        for output, found in zip(outputs, session.run(list(outputs), {"images": images}), strict=True):
            size = np.sqrt(np.mean(expected[output] ** 2))
            assert np.ptp(expected[output], axis=0).max() > 0.05 * size
            np.testing.assert_allclose(found, expected[output], rtol=0, atol=2e-5 * size, err_msg=output)
