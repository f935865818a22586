"""Outputs beside a classifier's: patches, features, and all in one graph, against timm's own class with the weights."""

import json
from collections import Counter

import numpy as np
import onnx
import pytest
import timm
import torch
from checkpoints import LABELS, classifier, pretrained, timm_vit
from PIL import Image

from ehm.backends.torch.export.heads import Heads
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.export import export
from ehm.deploy.predict.command import main
from ehm.deploy.predict.predictor import Predictor
from ehm.errors import ExportError

SIZE = (48, 64)
KINDS = {"fine-tuned": {}, "class token": {"pool": "token"}, "probe": {"frozen": True}, "encoder": None}


def by_timm(path, kind, images):
    """All three outputs of timm's class; an encoder has no logits."""
    pool, classes = KINDS[kind] or {}, 0 if kind == "encoder" else 3
    options = {"global_pool": pool.get("pool", "avg"), "num_classes": classes}
    model, tensors = timm_vit(path, SIZE, **options, fc_norm=kind == "fine-tuned")
    if kind == "probe":
        model.head = torch.nn.Sequential(torch.nn.BatchNorm1d(32, eps=1e-6, affine=False), model.head)
    model.load_state_dict(tensors)
    model.eval()
    with torch.inference_mode():
        tokens = model.forward_features(torch.from_numpy(images))
        patches = (model.fc_norm(tokens) if kind == "fine-tuned" else tokens)[:, 1:].mT.unflatten(2, (3, 4))
        values = {
            "logits": model.forward_head(tokens),
            "features": model.forward_head(tokens, pre_logits=True),
            "patches": patches,
        }
    return {name: value.numpy() for name, value in values.items() if name != "logits" or classes}


@pytest.mark.parametrize("kind", KINDS)
def test_one_graph_gives_what_timm_and_the_single_heads_give(kind, tmp_path):
    settings = KINDS[kind]
    path = pretrained(tmp_path, SIZE) if settings is None else classifier(tmp_path, SIZE, **settings)
    images = np.random.default_rng(0).normal(size=(3, 3, *SIZE)).astype(np.float32)
    expected = by_timm(path, kind, images)
    found = Predictor(export(path, head="multi", out=tmp_path / "multi")).run(images)
    assert list(found) == list(expected)
    heads = {"logits": "classifier", "features": "features", "patches": "patches"}
    for name, values in expected.items():
        assert values.std() > 0.1
        np.testing.assert_allclose(found[name], values, atol=1e-5)
        single = Predictor(export(path, head=heads[name], out=tmp_path / "single")).run(images)
        np.testing.assert_allclose(single[name], values, atol=1e-5)
        assert list(single) == [name]
    counts = Counter(node.op_type for node in onnx.load(tmp_path / "multi/model.onnx").graph.node)
    assert counts["ReduceMean"] == (0 if kind == "class token" else 1)
    separate = kind in ("class token", "fine-tuned")  # the norm of what is pooled is not that of the patches
    assert counts["LayerNormalization"] == 2 + 1 + separate
    outputs = {
        output.name: (output.layout, output.shape) for output in Bundle.open(tmp_path / "multi").manifest.outputs
    }
    assert outputs["patches"] == ("NCHW", ("batch", 32, 3, 4))
    assert outputs["features"] == ("NC", ("batch", 32))


def test_features_of_a_file_are_what_its_classifier_sees(tmp_path):
    """A plain ViT's file as published: ``norm`` and ``head``, whose classifier has the class token."""
    path = classifier(tmp_path, SIZE, pool="token")
    bare = tmp_path / "vit.safetensors"
    bare.write_bytes((path / "model.safetensors").read_bytes())
    images = np.random.default_rng(0).normal(size=(2, 3, *SIZE)).astype(np.float32)
    for head in ("features", "multi"):
        bundle = export(bare, head=head, out=tmp_path / head, overrides=["model.heads=2", "model.image_size=[48,64]"])
        found = Predictor(bundle).run(images)["features"]
        np.testing.assert_allclose(found, by_timm(path, "class token", images)["features"], atol=1e-5)


@pytest.mark.parametrize("name", ["test_vit2", "test_vit3", "test_convnext", "test_mambaout"])
@torch.inference_mode()
def test_a_model_of_timms_gives_all_three(name):
    model = timm.create_model(name, num_classes=7).eval()
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    logits, features, patches = Heads(model, ("logits", "features", "patches"))(images)
    torch.testing.assert_close(logits, model(images))
    torch.testing.assert_close(model.get_classifier()(features), logits)
    expected = model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[0]
    if name == "test_vit2":  # timm leaves out a norm that stands behind the average
        expected = model.fc_norm(expected.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(patches, expected)


def test_tokens_that_are_no_grid_are_one_sentence(tmp_path):
    with pytest.raises(ExportError, match=r"CrossVit: its tokens are no grid of patches; --head classifier and"):
        export("timm:crossvit_9_240?pretrained=false", head="patches", out=tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_features_beside_classes(tmp_path, capsys):
    classifier(tmp_path / "run", SIZE)
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(2):
        pixels = rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    files = [tmp_path / "images/0.png", tmp_path / "missing.png", tmp_path / "images/1.png"]
    for head, rows in (("multi", "features"), ("patches", "patches")):
        bundle = export(tmp_path / "run", head=head, out=tmp_path / head)
        capsys.readouterr()
        assert main([bundle, *files], out=tmp_path / "out") == 1
        printed = capsys.readouterr().out
        assert [label in printed for label in LABELS] == [head == "multi"] * 3
        predictor = Predictor(bundle)
        inputs = np.stack([predictor.prepare(Image.open(file)) for file in (files[0], files[2])])
        np.testing.assert_allclose(np.load(tmp_path / f"out/{rows}.npy"), predictor.run(inputs)[rows], atol=1e-6)
        assert {path.name for path in (tmp_path / "out").iterdir()} >= {"predictions.jsonl", f"{rows}.npy"}
        first, second, _ = map(json.loads, (tmp_path / "out/predictions.jsonl").read_text().splitlines())
        assert set(first) == ({"image", "classes"} if head == "multi" else {"image"})
        assert "error" in second
        (tmp_path / f"out/{rows}.npy").unlink()
