"""Networks are fed as their weights say: in training, measurement, bundles, graphs and model cards, beside timm."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from checkpoints import classifier
from onnx import TensorProto, helper
from PIL import Image
from skimage import data
from timm.data import create_transform, resolve_data_config

from ehm import backends
from ehm.config import DataConfig, FinetuneConfig, ModelSource, ProbeConfig, RetrievalConfig
from ehm.config.inputs import InputSpec
from ehm.data import EvalTransform
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.preprocessing import describe_preprocessing, find_seen_region
from ehm.deploy.export import export
from ehm.deploy.export.graphs.preprocessing import take_bytes
from ehm.deploy.predict.command import predict
from ehm.deploy.predict.predictor import Predictor
from ehm.storage.checkpoint import open_checkpoint
from ehm.tasks.classification.frozen_features import measure_neighbours_and_rank
from ehm.tasks.classification.task import Classification
from ehm.tasks.evaluate import evaluate
from ehm.tasks.finetune import finetune
from ehm.tasks.retrieval.transforms import EnlargeTransform

MEAN, STD = (0.481, 0.458, 0.408), (0.269, 0.261, 0.276)
SPECS = {
    "bilinear, 0.95": InputSpec(MEAN, STD, 0.95, "center", "bilinear"),
    "squash": InputSpec(MEAN, STD, 1.0, "squash", "bicubic"),
    "squash, bilinear, 0.9": InputSpec(MEAN, STD, 0.9, "squash", "bilinear"),
    "border": InputSpec(MEAN, STD, 1.0, "border", "bicubic"),
    "border, bilinear, 0.9": InputSpec(MEAN, STD, 0.9, "border", "bilinear"),
    "smaller than the crop": InputSpec(MEAN, STD, 1.15, "center", "bicubic"),
}
SHAPES = [(300, 451), (451, 300), (333, 240), (33, 40), (64, 96)]
"""Heights and widths of photographs, none more than 1.5 times as tall as wide (docs/export.md)."""


def photographs():
    for number, (height, width) in enumerate(SHAPES):
        picture = Image.fromarray((data.astronaut(), data.chelsea())[number % 2])
        yield picture.resize((width, height), Image.Resampling.LANCZOS)


def timms(size, spec, normalize=True):
    return create_transform(input_size=(3, *size), normalize=normalize, **spec.to_json())


def pixels_session(size, spec):
    """A session that gives back, in grey levels, what the network would be given."""
    identity = helper.make_node("Identity", ["images"], ["pixels"])
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 3, *size]) for n in ("images", "pixels")]
    graph = helper.make_graph([identity], "pixels", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    rule = describe_preprocessing(size, spec, in_graph=True)
    take_bytes(model, rule.model_copy(update={"mean": (0, 0, 0), "std": (1 / 255,) * 3}))
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_graph_makes_timms_pixels_within_the_documented_bound(spec, size):
    session, transform = pixels_session(size, spec), timms(size, spec, normalize=False)
    for photograph in photographs():
        (found,) = session.run(None, {"images": np.asarray(photograph)[None]})
        difference = np.abs(found[0] - transform(photograph).numpy())
        assert difference.max() <= 1, photograph.size
        # a linear resize that less than halves the size has many halves, which float32 and double round otherwise
        halves = photograph.height < 2 * size[0] and spec.interpolation == "bilinear"
        assert (difference > 0).mean() < (0.05 if halves else 0.01)


def checkpoint_of(folder, size, spec):
    """A classifier whose description says ``spec``."""
    path = classifier(folder, size)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "inputs": spec.to_json()}))
    return path


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_bundle_its_card_and_the_guide_feed_as_timm_does(spec, tmp_path, capsys):
    size = (48, 64)
    bundle = export(checkpoint_of(tmp_path, size, spec), out=tmp_path / "bundle")
    predictor, transform = Predictor(bundle), timms(size, spec)
    card = re.search(r"```python\n(.*?)```", (bundle / "README.md").read_text(), re.DOTALL)[1]
    guide = (Path(__file__).parents[2] / "docs/export.md").read_text().partition("```python\n")[2].partition("```")[0]
    for number, photograph in enumerate(photographs()):
        expected = transform(photograph).numpy()
        np.testing.assert_allclose(predictor.prepare(photograph), expected, atol=1e-5)
        if number > 1:
            continue
        photograph.save(tmp_path / "photo.png")
        scope = {"bundle": bundle, "image": tmp_path / "photo.png"}
        exec(guide, scope)
        np.testing.assert_allclose(scope["inputs"][0], expected, atol=1e-5)
        names = {"photo.png": str(tmp_path / "photo.png"), "model.onnx": str(bundle / "model.onnx")}
        scope = {}
        for name, path in names.items():
            card = card.replace(f'"{name}"', f'"{path}"')
        exec(card, scope)
        np.testing.assert_allclose(scope["inputs"][0], expected, atol=1e-5)
        (one,) = predict(bundle, tmp_path / "photo.png", top=1)
        assert capsys.readouterr().out.split()[-1] == one.classes[0][0]


def test_the_region_that_a_page_shows_is_what_the_model_sees():
    rule = describe_preprocessing((64, 64), InputSpec(crop_pct=1.0, crop_mode="squash"))
    assert find_seen_region(200, 100, rule) == (0, 0, 200, 100)
    rule = describe_preprocessing((64, 64), InputSpec(crop_pct=1.0, crop_mode="border"))
    assert find_seen_region(200, 100, rule) == (0, -50, 200, 200)
    rule = describe_preprocessing((64, 64), InputSpec(crop_pct=1.0))
    assert find_seen_region(200, 100, rule) == (50, 0, 100, 100)


@torch.inference_mode()
def test_a_network_of_timms_is_exported_as_timm_feeds_it(tmp_path):
    bundle = export("timm:test_vit?pretrained=false", out=tmp_path / "bundle")
    rule = Bundle.open(bundle).manifest.preprocessing
    assert (rule.image_size, rule.cover, rule.mean) == ((160, 160), (168, 168), (0.5, 0.5, 0.5))
    transform = create_transform(
        **resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg("test_vit").to_dict())
    )
    for photograph in photographs():
        np.testing.assert_allclose(Predictor(bundle).prepare(photograph), transform(photograph).numpy(), atol=1e-5)


SOURCE = ModelSource(init="timm:test_vit?pretrained=false", image_size=32)
OWN = InputSpec((0.5,) * 3, (0.5,) * 3, 0.95)
"""The preparation of images that timm states for test_vit."""


def test_learners_and_encoders_take_what_the_weights_say_unless_it_is_set():
    backend = backends.get("cpu")
    given = DataConfig(mean=MEAN, crop_mode="squash")
    changed = InputSpec(MEAN, (0.5,) * 3, 0.95, "squash")
    for data_config, expected in ((DataConfig(), OWN), (given, changed)):
        assert backend.create_task_learner(FinetuneConfig(model=SOURCE, data=data_config), 2).inputs == expected
        assert (
            backend.create_task_learner(ProbeConfig(model=SOURCE, data=data_config, pool="avg"), 2).inputs == expected
        )
        assert (
            backend.create_task_learner(RetrievalConfig(model=SOURCE, data=data_config, dim=None), 0).inputs == expected
        )
        assert backend.create_encoder(SOURCE, data_config).inputs == expected
    assert backend.create_encoder(SOURCE).inputs == OWN
    learner = backend.create_task_learner(FinetuneConfig(model=SOURCE, data=given), 2)
    assert "taken as trained with data.mean [0.5, 0.5, 0.5], data.crop_mode center" in learner.notes[-1]


def test_a_run_keeps_what_it_was_trained_with_and_is_measured_so(stripes, tmp_path, monkeypatch):
    shown = []
    call = EvalTransform.__call__
    monkeypatch.setattr(EvalTransform, "__call__", lambda self, *given: (shown.append(self), call(self, *given))[1])
    overrides = [f"data.source={stripes}", "data.workers=0", "data.interpolation=bilinear", "model.image_size=32"]
    overrides += [f"model.init={SOURCE.init}", "optim.epochs=1", "optim.batch_size=16", "optim.warmup_epochs=0"]
    overrides += ["run.trackers=[]", "augment.rand_augment=null"]
    out = tmp_path / "run"
    finetune("elpv/finetune", device="cpu", overrides=overrides, out=out)
    expected = InputSpec((0.5,) * 3, (0.5,) * 3, 0.95, "center", "bilinear")
    transform = EvalTransform.from_spec((32, 32), expected)
    assert set(shown) == {transform}
    assert open_checkpoint(open_checkpoint(out).folder).metadata["inputs"] == expected.to_json()

    shown.clear()
    evaluate(out, device="cpu")
    assert set(shown) == {transform}
    shown.clear()
    evaluate(out, device="cpu", overrides=["data.crop_pct=1.0"])
    assert {each.cover for each in shown} == {(32, 32)}
    bundle = export(out, out=tmp_path / "bundle")
    assert Bundle.open(bundle).manifest.preprocessing == describe_preprocessing((32, 32), expected)
    # going on with the same configuration, which leaves mean and std to the weights
    finetune("elpv/finetune", device="cpu", overrides=overrides, out=out, resume=True)

    shown.clear()
    config = ProbeConfig(model=ModelSource(init=str(out)), data=DataConfig(source=str(stripes), workers=0))
    measure_neighbours_and_rank(config, backends.get("cpu"), *Classification.split_images(config))
    assert set(shown) == {transform}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_what_is_described_at_several_scales_is_the_same_region(spec):
    transform = EvalTransform.from_spec((48, 64), spec)
    enlarged = EnlargeTransform(transform, (96, 128))
    for photograph in photographs():
        expected = transform(photograph).astype(float)
        found = enlarged(photograph).astype(float)
        halved = found.reshape(48, 2, 64, 2, 3).mean((1, 3))
        assert np.abs(halved - expected).mean() < 6, photograph.size
        bare = (expected == transform.fill).all(2)
        if bare.mean() > 0.1:  # what lies beyond the image
            assert (halved[bare] == transform.fill).mean() > 0.8


def test_checkpoints_of_older_versions_keep_their_meaning(tmp_path):
    """They say nothing of the crop: that of MAE, and the normalisation of their configuration."""
    path = classifier(tmp_path, (48, 64), data=DataConfig(mean=MEAN, std=STD))
    assert "inputs" not in open_checkpoint(path).metadata
    learner = backends.get("cpu").create_task_learner(FinetuneConfig(model=ModelSource(init=str(path))), 2)
    assert learner.inputs == InputSpec(MEAN, STD)
    rule = Bundle.open(export(path, out=tmp_path / "bundle")).manifest.preprocessing
    assert (rule.cover, rule.rounding, rule.resize) == ((54, 73), "down", "cover")
