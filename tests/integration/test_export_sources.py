"""Sources of an export: probes, published files, models of timm, features of a classifier, and another image size."""

import numpy as np
import onnx
import pytest
import timm
import torch
from checkpoints import LABELS, classifier, pretrained, timm_vit
from safetensors.torch import load_file, save_file

from ehm.config import ModelSource
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.export import export
from ehm.deploy.export.graphs import saving
from ehm.deploy.predict.predictor import Predictor
from ehm.errors import ExportError
from ehm.storage.reading import hash_file


def assert_gives(model, bundle, name="logits"):
    """Compare the one output of a bundle with a model of torch, on random images of 32 x 32 pixels."""
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    outputs = Predictor(bundle).run(images.numpy())
    assert list(outputs) == [name]
    with torch.inference_mode():
        expected = model.eval()(images).numpy()
    assert np.abs(outputs[name] - expected).max() < 1e-5


def test_a_probe_keeps_its_batch_norm(tmp_path):
    path = classifier(tmp_path / "run", (32, 32), frozen=True, pool="token")
    bundle = export(path, out=tmp_path / "bundle")
    model, tensors = timm_vit(path, (32, 32), num_classes=3, global_pool="token")
    model.head = torch.nn.Sequential(torch.nn.BatchNorm1d(32, eps=1e-6, affine=False), model.head)
    model.load_state_dict(tensors)
    assert_gives(model, bundle)


def test_a_published_file_keeps_its_classifier(tmp_path):
    """MAE's fine-tuned files: under ``model``, ``fc_norm`` and ``head``; no labels inside, so classes are numbered."""
    path = classifier(tmp_path / "run", (32, 32))
    model, tensors = timm_vit(path, (32, 32), num_classes=3, global_pool="avg")
    model.load_state_dict(tensors)
    torch.save({"model": tensors}, tmp_path / "mae.pth")
    # 32 wide is no published width, so that the number of heads has to be said
    bundle = export(tmp_path / "mae.pth", out=tmp_path / "bundle", overrides=["model.heads=2"])
    manifest = Bundle.open(bundle).manifest
    assert (manifest.labels, manifest.source.kind) == (("0", "1", "2"), "file")
    assert manifest.source.sha256 == hash_file(tmp_path / "mae.pth")
    assert_gives(model, bundle)


def test_timms_models_export_by_name(tmp_path):
    """A convolutional network without attention, LayerNormalization or positions: nothing here is for ViTs alone."""
    overrides = ["model.image_size=64", "target=onnxruntime"]
    bundle = export("timm:test_resnet?pretrained=false", head="multi", out=tmp_path / "bundle", overrides=overrides)
    manifest = Bundle.open(bundle).manifest
    assert (manifest.source.kind, len(manifest.labels), manifest.labels[0]) == ("timm", 1000, "tench, Tinca tinca")
    assert (manifest.target, manifest.models["float32"].domains) == ("portable", {})  # which is what torch writes
    assert [output.shape[1:] for output in manifest.outputs] == [(1000,), (96,), (96, 2, 2)]
    counts = manifest.models["float32"].operators
    assert counts.get("GlobalAveragePool", 0) + counts.get("ReduceMean", 0) == 1  # shared by logits and features


def test_a_run_that_started_from_one_of_timms_models_goes_through_torch(tmp_path):
    source = ModelSource(init="timm:test_vit?pretrained=false", image_size=32)
    path = classifier(tmp_path / "run", None, model=source)
    bundle = export(path, out=tmp_path / "bundle")
    manifest = Bundle.open(bundle).manifest
    assert (manifest.source.kind, manifest.labels) == ("classifier", tuple(LABELS))
    assert "onnxscript" in manifest.versions
    model = timm.create_model("test_vit", num_classes=3, img_size=32)
    model.load_state_dict(load_file(path / "model.safetensors"))
    assert_gives(model, bundle)


def test_another_image_size_resamples_the_positions(tmp_path):
    pretrained(tmp_path / "run", (48, 48))
    bundle = export(tmp_path / "run", out=tmp_path / "larger", overrides=["model.image_size=[64,96]", "opset=18"])
    manifest = Bundle.open(bundle).manifest
    assert manifest.input.shape == ("batch", 3, 64, 96)
    assert onnx.load(bundle / "model.onnx").opset_import[0].version == manifest.models["float32"].opset == 18


def test_a_classifier_gives_features_and_large_weights_lie_beside_the_graph(tmp_path, monkeypatch):
    path = classifier(tmp_path / "run", (32, 32))
    monkeypatch.setattr(saving, "EMBED_LIMIT", 10_000)
    bundle = export(path, out=tmp_path / "features", head="features")
    assert {file.name for file in bundle.iterdir()} == {"README.md", "manifest.json", "model.onnx", "model.onnx.data"}
    assert Bundle.open(bundle).manifest.labels == ()
    model, tensors = timm_vit(path, (32, 32), num_classes=3, global_pool="avg")
    model.load_state_dict(tensors)
    model.head = torch.nn.Identity()
    assert_gives(model, bundle, "features")
    with (bundle / "model.onnx.data").open("r+b") as file:
        file.seek(5000)
        file.write(b"\x01")
    with pytest.raises(ExportError, match=r"model\.onnx\.data: does not match"):
        Bundle.open(bundle)


@pytest.mark.parametrize("scale", [100, 0.01])
def test_a_network_whose_features_are_larger_or_smaller_is_as_right(tmp_path, scale):
    """The same function: the norm before the head times ``scale``, and the head's weights divided by it."""
    path = classifier(tmp_path / "run", (48, 64))
    arrays = load_file(path / "model.safetensors")
    for name, factor in {"fc_norm.weight": scale, "fc_norm.bias": scale, "head.weight": 1 / scale}.items():
        arrays[name] = arrays[name] * factor
    save_file(arrays, tmp_path / "model.safetensors")
    overrides = ["model.heads=2", "model.image_size=[48,64]"]
    bundle = export(tmp_path / "model.safetensors", head="multi", out=tmp_path / "bundle", overrides=overrides)
    found = Bundle.open(bundle).manifest.parity
    assert 0 < found.max_relative < 1e-5
    assert found.max_abs > 1e-4 or scale < 1  # as the features are large
