"""Folders of encoders, loaded by timm and transformers by name, against the features of our own networks.

Networks are tiny, and all of their parameters are random, so that each matters.
"""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

from ehm.backends.torch.engine.tensors import to_arrays
from ehm.backends.torch.models.build import build_encoder
from ehm.backends.torch.models.loading import load_model
from ehm.config import ModelSource
from ehm.config.encoders import DINOV3_ROTARY, EVA_ROTARY, SwinSpec, VitForm, VitSpec
from ehm.config.inputs import InputSpec
from ehm.data import EvalTransform
from ehm.models.fitting import resize_weights
from ehm.models.handover import folders
from ehm.models.handover.card import CardFacts
from ehm.models.handover.folders import write_encoder_folders
from ehm.models.opening import open_model
from ehm.models.shapes import spec_to_json
from ehm.models.weights import Provenance, Weights

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
DINOV3 = {"layer_scale": True, "registers": 4, "added_positions": False, "rotary": DINOV3_ROTARY, "norm_epsilon": 1e-5}


def vit(image_size=(32, 32), relative=False, **form):
    return VitSpec(image_size, 8, 48, 2, 2, relative=relative, form=VitForm(**form))


SPECS = {
    "plain": vit(),
    "plain, wide": vit((16, 32)),
    "plain, of another epsilon": vit(norm_epsilon=1e-5),
    "relative": vit(relative=True),
    "relative, wide": vit((16, 32), relative=True),
    "DINOv2": vit(layer_scale=True),
    "DeiT III": vit(layer_scale=True, prefix_positions=False),
    "DINOv2 with registers": vit(layer_scale=True, registers=4, prefix_positions=False),
    "DINOv2 with gates": vit(layer_scale=True, mlp="swiglu_packed"),
    "gates": vit(mlp="swiglu_packed"),
    "DeiT with distillation": vit(registers=1),
    "DINOv3": vit(**DINOV3),
    "DINOv3, wide": vit((16, 32), **DINOV3),
    "DINOv3 with gates": vit(**{**DINOV3, "mlp": "swiglu", "bias": False}),
    "DINOv3 with packed gates": vit(**{**DINOV3, "mlp": "swiglu_packed", "registers": 0}),
    "EVA-02": vit(rotary=EVA_ROTARY, separate_heads=True, mlp="swiglu", norm_mlp=True, norm_values=True),
    "CLIP": vit(norm_before=True, norm_epsilon=1e-5, mlp="quick_gelu"),
    "AIMv2": vit(
        norm="rms",
        norm_epsilon=1e-5,
        norm_patches=True,
        class_token=False,
        bias=False,
        output_bias=False,
        mlp="swiglu",
    ),
    "RMS norms": vit(norm="rms"),
    "registers alone": vit(class_token=False, registers=4),
    "Swin": SwinSpec((64, 64), 4, 24, (2, 2), (2, 2), 4),
    "Swin, wide": SwinSpec((64, 96), 4, 24, (2, 2), (2, 2), 4),
    "Swin, of small stages": SwinSpec((32, 32), 4, 24, (2, 2), (2, 2), 7),
}
TYPES = {
    "plain": "vit",
    "plain, wide": "vit",
    "plain, of another epsilon": "vit",
    "relative": "beit",
    "DINOv2": "dinov2",
    "DeiT III": "dinov2",
    "DINOv2 with registers": "dinov2_with_registers",
    "DINOv2 with gates": "dinov2",
    "gates": "dinov2",
    "DeiT with distillation": "dinov2_with_registers",
    "DINOv3": "dinov3_vit",
    "DINOv3, wide": "dinov3_vit",
    "DINOv3 with gates": "dinov3_vit",
    "DINOv3 with packed gates": "dinov3_vit",
    "CLIP": "clip_vision_model",
    "Swin": "swin",
    "Swin, wide": "swin",
}
"""The encoders that transformers has, before fine-tuning."""
FINE_TUNED = {
    "plain": "beit",
    "relative": "beit",
    "DINOv2": "beit",
    "DeiT III": "beit",
    "CLIP": "clip_vision_model",
}
"""The encoders that it has with a norm behind the pooling, as fine-tuning leaves them."""


@pytest.fixture(scope="module")
def transformers():
    """transformers, which takes seconds to import, without a network."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    module = pytest.importorskip("transformers")
    module.logging.disable_progress_bar()
    return module


def build(spec, classes=0, pool="avg", fc_norm=False):
    """A network of ours with random parameters, and its weights as a run has them."""
    torch.manual_seed(0)
    model = build_encoder(spec, classes, 0.0, pool, fc_norm).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3 if parameter.ndim < 2 else 0.1)
    labels = tuple(f"class {index}" for index in range(classes))
    provenance = Provenance("here", "pretrain", inputs=InputSpec(MEAN, STD), labels=labels, pool=pool)
    arrays = {name: array.copy() for name, array in to_arrays(model).items()}
    return model, Weights(arrays, provenance, spec)


def images(size):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def load_auto(transformers, folder, kind="AutoModel"):
    """Load a folder by ``kind``, and see that every parameter comes from its file."""
    model, report = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    return model.eval(), report["unexpected_keys"]


def read_features(folder):
    """The line of the card that tells how to take features from the outputs."""
    lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith(("features = ", "# AutoModel gives"))]
    return line.partition(" = " if line.startswith("features") else ": ")[2]


@torch.inference_mode()
@pytest.mark.parametrize("fc_norm", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_timm_gives_our_features(tmp_path, name, fc_norm):
    model, weights = build(SPECS[name], fc_norm=fc_norm)
    write_encoder_folders(tmp_path, weights, CardFacts())
    loaded = timm.create_model(f"local-dir:{tmp_path / 'encoder'}", pretrained=True).eval()
    for parameter, value in loaded.state_dict().items():
        np.testing.assert_array_equal(value, weights.arrays[parameter])
    pixels = images(SPECS[name].image_size)
    torch.testing.assert_close(loaded(pixels), model(pixels), rtol=1e-5, atol=1e-5)
    wanted = {"mean": MEAN, "std": STD, "input_size": (3, *SPECS[name].image_size), "interpolation": "bicubic"}
    data = timm.data.resolve_model_data_config(loaded)
    assert {key: tuple(data[key]) if key != "interpolation" else data[key] for key in wanted} == wanted


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "fc_norm", "model_type"),
    [(name, False, kind) for name, kind in TYPES.items()] + [(name, True, kind) for name, kind in FINE_TUNED.items()],
)
def test_transformers_gives_our_features(tmp_path, transformers, name, fc_norm, model_type):
    model, weights = build(SPECS[name], fc_norm=fc_norm)
    write_encoder_folders(tmp_path, weights, CardFacts())
    folder = tmp_path / "encoder_hf"
    loaded, unexpected = load_auto(transformers, folder)
    assert not unexpected
    assert loaded.config.model_type == model_type
    pixels = images(SPECS[name].image_size)
    outputs = loaded(pixels)
    features = eval(read_features(folder), {"outputs": outputs, "model": loaded})
    torch.testing.assert_close(features, model(pixels), rtol=1e-5, atol=1e-5)
    tokens = model.forward_features(pixels)
    if model_type == "swin":
        tokens = tokens.flatten(1, 2)
    if model_type != "clip_vision_model":  # its tokens stand before the last norm
        torch.testing.assert_close(outputs.last_hidden_state, tokens, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "resamples_alike"),
    [("plain", False), ("DINOv2", False), ("DINOv2 with registers", True), ("DINOv3", True), ("CLIP", False)],
)
def test_at_another_size_only_the_resampling_of_positions_differs(tmp_path, transformers, name, resamples_alike):
    """transformers resamples without antialiasing in most networks, with another cubic kernel."""
    _, weights = build(SPECS[name])
    write_encoder_folders(tmp_path, weights, CardFacts())
    loaded, _ = load_auto(transformers, tmp_path / "encoder_hf")
    larger = resize_weights(weights, ModelSource(init="here", image_size=(48, 48)))
    tensors = {key: torch.from_numpy(value) for key, value in larger.arrays.items()}
    if not resamples_alike:
        positions = torch.from_numpy(weights.arrays["pos_embed"])
        grid = positions[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
        grid = torch.nn.functional.interpolate(grid, (6, 6), mode="bicubic").permute(0, 2, 3, 1)
        tensors["pos_embed"] = torch.cat([positions[:, :1], grid.flatten(1, 2)], dim=1)
    model = build_encoder(larger.spec, fc_norm=False).eval()
    model.load_state_dict(tensors)
    pixels = images((48, 48))
    options = {"interpolate_pos_encoding": True} if name in ("plain", "CLIP") else {}
    features = eval(read_features(tmp_path / "encoder_hf"), {"outputs": loaded(pixels, **options), "model": loaded})
    torch.testing.assert_close(features, model(pixels), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "fc_norm", "reason"),
    [
        ("relative, wide", False, "its beit takes square images, and these are (16, 32)"),
        ("DINOv2 with registers", True, "it has no ViT with registers 4 (the nearest is beit)"),
        ("DINOv2 with gates", True, "its beit has no gated MLP"),
        ("DINOv3", True, "its dinov3_vit has its last norm before the pooling"),
        ("EVA-02", False, "it has no ViT with norm values (the nearest is dinov3_vit)"),
        ("registers alone", False, "it has no ViT with no class token (the nearest is dinov2_with_registers)"),
        ("Swin, of small stages", False, "its swin has other windows where a stage is 4 x 4"),
    ],
)
def test_what_transformers_lacks_is_said_in_one_sentence(tmp_path, name, fc_norm, reason):
    stale = tmp_path / "encoder_hf"
    stale.mkdir()
    (stale / "config.json").write_text("{}")
    written, notes = write_encoder_folders(tmp_path, build(SPECS[name], fc_norm=fc_norm)[1], CardFacts())
    assert written == [tmp_path / "encoder"]
    assert notes == [f"no encoder_hf/: {reason}"]
    assert not stale.exists()  # another encoder's


def test_what_timm_lacks_is_said_in_one_sentence(tmp_path):
    _, weights = build(vit(norm="rms", layer_scale=True, mlp="swiglu_packed"))
    written, notes = write_encoder_folders(tmp_path, weights, CardFacts())
    assert not written
    assert notes[0].startswith("no encoder/: its config.json cannot describe a ViT with norm rms, layer scale, mlp")


@torch.inference_mode()
def test_an_epsilon_that_json_cannot_say_is_noted(tmp_path):
    model, weights = build(vit(norm_epsilon=1e-12))
    _, notes = write_encoder_folders(tmp_path, weights, CardFacts())
    note = "timm computes norms with epsilon 1e-06, not 1e-12, which its config.json cannot say"
    assert notes == [f"encoder/: {note}"]
    assert note.removeprefix("timm") in (tmp_path / "encoder/README.md").read_text(encoding="utf-8")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'encoder'}", pretrained=True).eval()
    pixels = images((32, 32))
    torch.testing.assert_close(loaded(pixels), model(pixels), rtol=1e-3, atol=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "pool", "fc_norm"),
    [("plain", "avg", True), ("plain", "token", False), ("relative", "avg", True), ("Swin", "avg", None)],
)
def test_classifiers_go_with_their_encoders(tmp_path, transformers, name, pool, fc_norm):
    model, weights = build(SPECS[name], 3, pool, fc_norm)
    written, notes = write_encoder_folders(tmp_path, weights, CardFacts())
    assert len(written) == 2
    assert not notes
    pixels = images(SPECS[name].image_size)
    wanted = model(pixels)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'encoder'}", pretrained=True).eval()
    torch.testing.assert_close(loaded(pixels), wanted, rtol=1e-5, atol=1e-5)
    assert loaded.pretrained_cfg["label_names"] == ["class 0", "class 1", "class 2"]
    fresh = timm.create_model(f"local-dir:{tmp_path / 'encoder'}", pretrained=True, num_classes=5)
    assert fresh(pixels).shape == (2, 5)

    folder = tmp_path / "encoder_hf"
    classifier, _ = load_auto(transformers, folder, "AutoModelForImageClassification")
    torch.testing.assert_close(classifier(pixels).logits, wanted, rtol=1e-5, atol=1e-5)
    assert classifier.config.id2label == {0: "class 0", 1: "class 1", 2: "class 2"}
    encoder, _ = load_auto(transformers, folder)
    features = eval(read_features(folder), {"outputs": encoder(pixels), "model": encoder})
    torch.testing.assert_close(features, model.forward_head(model.forward_features(pixels), pre_logits=True))


@torch.inference_mode()
def test_a_linear_probe_becomes_one_layer(tmp_path):
    model, weights = build(SPECS["plain"], 3)
    model.head = torch.nn.Sequential(torch.nn.BatchNorm1d(48, affine=False, eps=1e-6), torch.nn.Linear(48, 3)).eval()
    model.head[0].running_mean.normal_()
    model.head[0].running_var.uniform_(0.5, 2)
    weights = replace(weights, arrays={name: array.copy() for name, array in to_arrays(model).items()})
    _, notes = write_encoder_folders(tmp_path, weights, CardFacts())
    assert notes == ["encoder_hf/: its vit classifies by other features, so that the classifier is left out"]
    loaded = timm.create_model(f"local-dir:{tmp_path / 'encoder'}", pretrained=True).eval()
    pixels = images((32, 32))
    torch.testing.assert_close(loaded(pixels), model(pixels), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_the_code_of_the_cards_gives_our_features_of_a_photograph(tmp_path, transformers, library):
    model, weights = build(SPECS["plain"])
    write_encoder_folders(tmp_path, weights, CardFacts())
    down, across = np.mgrid[0:80, 0:90]
    image = Image.fromarray(np.stack([2 * down, 2 * across, down + across], axis=-1).astype(np.uint8))

    folder = tmp_path / {"timm": "encoder", "transformers": "encoder_hf"}[library]
    text = (folder / "README.md").read_text(encoding="utf-8")
    code = text.partition("```python\n")[2].partition("```")[0]
    names = {"image": image}
    exec(code.replace("FOLDER", str(folder)), names)

    sample = EvalTransform.from_spec((32, 32), weights.provenance.inputs)(image).astype(np.float32) / 255
    pixels = torch.from_numpy((sample - MEAN) / STD).permute(2, 0, 1).float()
    # resizing differs by a grey level
    torch.testing.assert_close(names["features"], model(pixels[None]), rtol=0.02, atol=0.02)


def test_what_their_preprocessors_do_otherwise_is_noted(tmp_path):
    _, notes = write_encoder_folders(tmp_path, build(SPECS["plain, wide"])[1], CardFacts())
    assert notes == ["encoder_hf/: its preprocessor changes the proportions of images, which ehm keeps"]


def test_the_bytes_of_the_encoder_are_shared(tmp_path, monkeypatch):
    _, weights = build(SPECS["plain"])
    write_encoder_folders(tmp_path, weights, CardFacts())
    source = (tmp_path / "encoder/model.safetensors").rename(tmp_path / "encoder.safetensors")
    write_encoder_folders(tmp_path, weights, CardFacts(), source)
    assert (tmp_path / "encoder/model.safetensors").samefile(source)

    def refuse(*_):
        raise OSError("no hard links here")

    monkeypatch.setattr(folders.os, "link", refuse)
    write_encoder_folders(tmp_path, weights, CardFacts(), source)
    copy = tmp_path / "encoder/model.safetensors"
    assert not copy.samefile(source)
    assert copy.read_bytes() == source.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"encoder", "encoder_hf", "encoder.safetensors"}


@torch.inference_mode()
@pytest.mark.parametrize("fc_norm", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_we_open_our_own_folder_as_it_was(tmp_path, name, fc_norm):
    model, weights = build(SPECS[name], fc_norm=fc_norm)
    write_encoder_folders(tmp_path, weights, CardFacts())
    loaded = load_model(ModelSource(init=str(tmp_path / "encoder")), fc_norm=fc_norm)
    assert loaded.inputs == weights.provenance.inputs
    assert loaded.architecture == spec_to_json(SPECS[name])
    pixels = images(SPECS[name].image_size)
    torch.testing.assert_close(loaded.model.eval()(pixels), model(pixels))


@pytest.mark.parametrize(("pool", "fc_norm"), [("avg", True), ("avg", False), ("token", False)])
def test_we_open_our_own_classifier_with_its_classes_and_pooling(tmp_path, pool, fc_norm):
    _, weights = build(SPECS["plain"], 3, pool, fc_norm)
    write_encoder_folders(tmp_path, weights, CardFacts())
    provenance = open_model(ModelSource(init=str(tmp_path / "encoder"))).provenance
    assert provenance.labels == weights.provenance.labels
    assert provenance.pool == pool


@torch.inference_mode()
@pytest.mark.parametrize("name", TYPES)
def test_our_reader_of_their_names_undoes_our_renaming(tmp_path, name):
    model, weights = build(SPECS[name])
    write_encoder_folders(tmp_path, weights, CardFacts())
    # a window is not read from a folder, and would be as large as the last stage
    window = getattr(SPECS[name], "window", None)
    source = ModelSource(init=str(tmp_path / "encoder_hf"), image_size=SPECS[name].image_size, window=window)
    loaded = load_model(source, fc_norm=False)
    pixels = images(SPECS[name].image_size)
    torch.testing.assert_close(loaded.model.eval()(pixels), model(pixels), rtol=1e-5, atol=1e-5)


def test_cards_have_the_fields_of_the_hub(tmp_path):
    facts = CardFacts(["Pretrained.", "Before that: DINOv2."], "timm/vit_small.tag", ["elpv"], ["evolved"], "free")
    write_encoder_folders(tmp_path, build(SPECS["plain"])[1], facts)
    for folder, library in (("encoder", "timm"), ("encoder_hf", "transformers")):
        text = (tmp_path / folder / "README.md").read_text(encoding="utf-8")
        _, front, body = text.split("---\n", 2)
        assert yaml.safe_load(front) == {
            "license": "unknown",
            "library_name": library,
            "pipeline_tag": "image-feature-extraction",
            "tags": [library, "vision", "evolved"],
            "base_model": "timm/vit_small.tag",
            "datasets": ["elpv"],
        }
        assert "- Pretrained.\n- Before that: DINOv2.\n" in body
        assert "- data: free" in body
    write_encoder_folders(tmp_path, build(SPECS["plain"], 3, fc_norm=True)[1], CardFacts())
    text = (tmp_path / "encoder/README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(text.split("---\n")[1])["pipeline_tag"] == "image-classification"
    assert "Its 3 classes: class 0, class 1, class 2." in text
    assert json.loads((tmp_path / "encoder_hf/config.json").read_text())["label2id"]["class 2"] == 2
