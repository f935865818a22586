"""Graphs that are written node by node, against timm's classes with the same weights: all but plain ViTs."""

import math

import numpy as np
import onnxruntime
import pytest
from task_checkpoints import PLAIN, SWIN, save_classifier, save_embedder, save_pretrained, save_segmenter
from vit_forms import write_form

from ehm.backends.torch.export.module import compute_with_torch, load_module, make_network
from ehm.config import ExportConfig, ModelSource
from ehm.deploy.export.graphs.saving import save
from ehm.deploy.export.sources import prepare_export

OPERATORS = {
    *("Add", "Concat", "Conv", "ConvTranspose", "Div", "Erf", "Gather", "Gemm", "LayerNormalization", "MatMul", "Max"),
    *("MaxPool", "Mul", "Pad", "Pow", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Resize", "Sigmoid", "Slice"),
    *("Softmax", "Split", "Sqrt", "Sub", "Transpose"),
}
"""Each of them is registered by Ascend's converter at operator sets 17 and 18 (npu/cann_onnx_ops.tsv)."""


def relative(folder):
    return {"init": str(save_pretrained(folder / "pretrained")), "drop_path": 0}


def published(form, folder):
    return {"init": str(write_form(form, folder / "encoder.safetensors")), "drop_path": 0}


CASES = {
    "relative, average": lambda folder: save_classifier(folder, relative(folder)),
    "relative, class token, probe": lambda folder: save_classifier(
        folder, relative(folder), pool="token", frozen=True, layer_decay=1
    ),
    "relative, another size": lambda folder: save_pretrained(folder),
    "swin": lambda folder: save_classifier(folder, SWIN),
    "swin, probe": lambda folder: save_classifier(folder, SWIN, frozen=True, layer_decay=1),
    "dinov3, another size": lambda folder: save_classifier(folder, published("dinov3", folder), pool="token"),
    "dinov2, probe": lambda folder: save_classifier(
        folder, published("dinov2_registers", folder), frozen=True, layer_decay=1
    ),
    "descriptor": lambda folder: save_embedder(folder, {**PLAIN, "patch_size": 8}),
    "descriptor, class token": lambda folder: save_embedder(folder, relative(folder), pool="token", dim=None),
    "descriptor, swin": lambda folder: save_embedder(folder, SWIN),
    "descriptor, siglip": lambda folder: save_embedder(folder, published("siglip", folder), pool="map", dim=None),
    "segmenter": lambda folder: save_segmenter(folder, PLAIN, [64, 96]),
    "segmenter, patches of 14": lambda folder: save_segmenter(
        folder, {**PLAIN, "patch_size": 14, "image_size": 56}, 64
    ),
    "segmenter, relative": lambda folder: save_segmenter(folder, relative(folder), [64, 96]),
    "segmenter, swin": lambda folder: save_segmenter(folder, SWIN, [64, 96]),
    "segmenter, eva02": lambda folder: save_segmenter(folder, published("eva02", folder), [64, 96]),
}
SIZES = {
    "relative, another size": (48, 64),
    "dinov3, another size": (48, 80),
    "segmenter": (96, 64),
    "segmenter, swin": (96, 128),
}
FUSED = {"dinov2, probe", "descriptor", "descriptor, siglip", "segmenter", "segmenter, patches of 14"}
"""Networks whose attention ONNX Runtime has an operator of its own for."""


@pytest.mark.parametrize("case", CASES)
def test_a_graph_computes_what_timms_class_computes(case, tmp_path):
    source = ModelSource(init=str(CASES[case](tmp_path)), image_size=SIZES.get(case))
    head = "auto" if "segmenter" in case else "multi"
    exportable = prepare_export(source, head)
    assert exportable.packages == ("torch", "timm")  # torch's exporter would have onnxscript too
    compute, _ = compute_with_torch(make_network(load_module(source, head), head))
    for opset in (17, 18):
        for target in ("portable", "ascend"):
            file = tmp_path / f"{target}.{opset}.onnx"
            graph = exportable.make_graph(ExportConfig(opset=opset, target=target))
            assert {node.op_type for node in graph.graph.node} <= OPERATORS
            save(graph, file)
            session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
            for batch in (1, 3):
                shape = (batch, 3, *exportable.image_size)
                images = np.random.default_rng(batch).normal(size=shape).astype(np.float32)
                expected = compute(images)
                found = session.run(list(expected), {"images": images})
                assert tuple(expected) == exportable.outputs
                for values, (output, wanted) in zip(found, expected.items(), strict=True):
                    size = math.sqrt(np.mean(wanted**2))
                    assert np.ptp(wanted, axis=-1).max() > 0.1 * size
                    np.testing.assert_allclose(values, wanted, rtol=0, atol=2e-5 * size, err_msg=output)
    # the manifest names the graph that is there
    wanted = ExportConfig(target="onnxruntime")
    is_fused = any(node.domain for node in exportable.make_graph(wanted).graph.node)
    assert is_fused == (exportable.choose_target(wanted) == "onnxruntime")
    assert is_fused == (case in FUSED)
