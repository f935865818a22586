"""Bundles of ViTs of every form: outputs are timm's, in every precision and for every target."""

import json

import elsewhere
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from oldest import run_in_oldest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from vit_forms import FORMS, SIZES, random_network, write_form

from ehm.config import ExportConfig, ModelSource
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.export import export
from ehm.deploy.export.graphs.norms import write_norms_out
from ehm.deploy.export.graphs.saving import save
from ehm.deploy.export.precision.int8 import write_int8
from ehm.deploy.export.sources import prepare_export
from ehm.deploy.predict.predictor import Predictor
from ehm.errors import ConfigError

CANN = {
    *("Add", "Concat", "Conv", "Div", "Erf", "Gather", "MatMul", "Mul", "Pad", "ReduceMean", "Reshape", "Sigmoid"),
    *("Slice", "Softmax", "Split", "Sqrt", "Sub", "Tanh", "Transpose"),
}
"""Operators in ONNX Runtime's list for CANN (cann_graph.cc, v1.24.4); LayerNormalization is not."""
COMPUTED_POSITIONS = {"Sin", "Cos", "Range", "Resize"}
"""Operators of positions that would be computed anew for every batch."""
EXPORTED = [form for form in FORMS if form not in ("deit_distilled", "dinov3")]
"""Forms that are exported in every way; the graphs of the other two have nothing that these do not have."""
NORMED = {"norm1": ["attn.qkv"], "norm2": ["mlp.fc1", "mlp.fc1_g", "mlp.fc1_x"]}
"""Norms of a block, and the linear layers behind each."""
WRITE = """
import sys
from pathlib import Path
from ehm.config import ExportConfig, ModelSource
from ehm.deploy.export.sources import prepare_export

for file in Path(sys.argv[1]).glob("*.safetensors"):
    graph = prepare_export(ModelSource(init=str(file)), "multi").make_graph(ExportConfig())
    file.with_suffix(".onnx").write_bytes(graph.SerializeToString())
"""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Twelve smooth pictures, to calibrate by and to measure on."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for number in range(12):
        corners = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        corners.resize((72, 72), Image.Resampling.BICUBIC).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module", params=EXPORTED)
def exported(request, photographs, tmp_path_factory):
    """The name of a form, its bundle with every precision, and its graph for Ascend."""
    folder = tmp_path_factory.mktemp(request.param)
    file = write_form(request.param, folder / "encoder.safetensors")
    settings = [
        "int8=true",
        "float16=true",
        f"calibration.source={photographs}",
        "calibration.images=4",
    ]
    bundle = Bundle.open(export(file, head="multi", out=folder / "bundle", overrides=settings))
    graph = onnx.load(bundle.model())
    write_norms_out(graph)
    save(graph, folder / "ascend.onnx")
    return request.param, bundle, folder / "ascend.onnx"


def images(form):
    side = FORMS[form][1]
    return np.random.default_rng(1).normal(size=(2, 3, side, side)).astype(np.float32)


@torch.inference_mode()
def timm_outputs(form):
    """Pooled features and patches of timm's own network."""
    network = random_network(form)
    tokens = network.forward_features(torch.from_numpy(images(form)))
    patches = tokens[:, network.num_prefix_tokens :]
    features = network.attn_pool(patches) if form == "siglip" else network.fc_norm(patches.mean(dim=1))
    side = round(patches.shape[1] ** 0.5)
    grid = network.fc_norm(patches).mT.unflatten(2, (side, side))
    return {"features": features.numpy(), "patches": grid.numpy()}


def test_outputs_are_timms_for_both_targets_and_in_the_oldest_onnx_runtime(exported, tmp_path):
    form, bundle, ascend = exported
    expected = timm_outputs(form)
    session = onnxruntime.InferenceSession(ascend, providers=["CPUExecutionProvider"])
    names = list(expected)
    found = [
        Predictor(bundle).run(images(form)),
        dict(zip(names, session.run(names, {"images": images(form)}), strict=True)),
        *run_in_oldest([bundle.model(), ascend], [images(form)] * 2, tmp_path),
    ]
    for outputs in found:
        assert outputs.keys() == expected.keys()
        for name, values in expected.items():
            size = np.sqrt(np.mean(values**2))
            np.testing.assert_allclose(outputs[name], values, rtol=0, atol=2e-5 * size, err_msg=name)


def test_the_graph_is_of_opset_17_with_constant_positions(exported):
    _, bundle, ascend = exported
    record = bundle.manifest.models["float32"]
    assert record.opset == 17
    assert record.domains == {}
    assert not set(record.operators) & COMPUTED_POSITIONS
    assert {node.op_type for node in onnx.load(ascend).graph.node} <= CANN


def test_a_bundle_for_ascend_has_that_graph_in_opset_18_too(tmp_path):
    file = write_form("dinov3", tmp_path / "encoder.safetensors")
    overrides = ["target=ascend", "opset=18"]
    manifest = Bundle.open(export(file, out=tmp_path / "bundle", overrides=overrides)).manifest
    assert manifest.target == "ascend"
    assert "atc.sh" in manifest.files
    assert manifest.models["float32"].opset == 18
    assert set(manifest.models["float32"].operators) <= CANN


def enlarge_features(file):
    """Make three features behind each norm in ``file`` thirty times as large, and their weights as much smaller."""
    with safe_open(file, "np") as opened:
        metadata = opened.metadata()
    arrays = load_file(file)
    for block in range(SIZES["depth"]):
        for norm, layers in NORMED.items():
            for part in ("weight", "bias"):
                if f"blocks.{block}.{norm}.{part}" in arrays:
                    arrays[f"blocks.{block}.{norm}.{part}"][:3] *= 30
            for layer in layers:
                if f"blocks.{block}.{layer}.weight" in arrays:
                    arrays[f"blocks.{block}.{layer}.weight"][:, :3] /= 30
    save_file(arrays, file, metadata=metadata)


@pytest.mark.parametrize("form", ["aimv2", "dinov3"])
def test_large_features_behind_norms_of_plain_operators_cost_nothing_in_int8(form, tmp_path):
    file = write_form(form, tmp_path / "encoder.safetensors")
    enlarge_features(file)
    bundle = Bundle.open(export(file, out=tmp_path / "bundle", overrides=["target=ascend"]))
    assert "LayerNormalization" not in bundle.manifest.models["float32"].operators
    rng = np.random.default_rng(0)
    side = FORMS[form][1]
    given = rng.normal(size=(16, 3, side, side)).astype(np.float32)
    write_int8(bundle.model(), bundle.path / "model.int8.onnx", [given[:8]])
    features = []
    for path in (bundle.model(), bundle.path / "model.int8.onnx"):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        features.append(session.run(["features"], {"images": given[8:]})[0])
    before, after = features
    cosine = (before * after).sum(1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
    assert cosine.min() > 0.999


def test_lower_precisions_keep_the_features(exported):
    form, bundle, _ = exported
    models = bundle.manifest.models
    gated = form in ("dinov2_giant", "dinov3_gated", "aimv2", "eva02", "eva02_clip")
    assert models["int8"].operators["QuantizeLinear"] >= (6 if gated else 8)
    assert models["int8"].quality.cosine > 0.995
    assert models["float16"].quality.cosine > 0.9999
    for precision in ("int8", "float16"):
        onnx.checker.check_model(onnx.load(bundle.model(precision)), full_check=True)


@elsewhere.needs_mindspore
def test_files_are_the_same_with_mindspore_and_without_torch(tmp_path):
    for form in FORMS:
        write_form(form, tmp_path / f"{form}.safetensors")
    done = elsewhere.run("-c", WRITE, tmp_path)
    assert done.returncode == 0, done.stderr
    for form in FORMS:
        exportable = prepare_export(ModelSource(init=str(tmp_path / f"{form}.safetensors")), "multi")
        written = exportable.make_graph(ExportConfig()).SerializeToString()
        assert (tmp_path / f"{form}.onnx").read_bytes() == written
    elsewhere.ehm("export", tmp_path / "eva02.safetensors", "--head", "multi", "--out", tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle/manifest.json").read_text())
    assert manifest["parity"]["reference"].startswith("mindspore ")
    assert manifest["parity"]["max_relative"] < 2e-5
    assert "torch" not in manifest["versions"]


@pytest.mark.parametrize("form", ["dinov2_registers", "siglip"])
def test_images_of_any_size_give_what_an_export_at_that_size_gives(form, tmp_path):
    file = write_form(form, tmp_path / "encoder.safetensors")
    exportable = prepare_export(ModelSource(init=str(file)), "multi")
    settings = ExportConfig(dynamic_size=True)
    assert exportable.find_smallest_side(settings) == (14 if form == "dinov2_registers" else 16)
    dynamic = open_graph(exportable.make_graph(settings))
    for height, width in ((4, 4), (6, 3), (2, 9)):
        size = (exportable.patch_size * height, exportable.patch_size * width)
        there = prepare_export(ModelSource(init=str(file), image_size=size), "multi")
        fixed = open_graph(there.make_graph(ExportConfig()))
        given = np.random.default_rng(height).normal(size=(2, 3, *size)).astype(np.float32)
        wanted = fixed.run(None, {"images": given})
        for expected, found in zip(wanted, dynamic.run(None, {"images": given}), strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.sqrt(np.mean(expected**2)))


@pytest.mark.parametrize("form", ["dinov3", "eva02"])
def test_rotary_positions_have_one_size(form, tmp_path):
    exportable = prepare_export(ModelSource(init=str(write_form(form, tmp_path / "encoder.safetensors"))), "auto")
    with pytest.raises(ConfigError, match="is no ViT of ours with added positions, which the graph could resample"):
        exportable.make_graph(ExportConfig(dynamic_size=True))


def open_graph(graph):
    return onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
