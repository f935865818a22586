"""Folders in the Hub's layout: their files, settings, images, classes, and what is wrong with them in one sentence."""

import json

import numpy as np
import pytest
import timm
import torch
from author_names import as_openai_clip, randomise
from PIL import Image
from safetensors.torch import save_file

from ehm.analysis.inspect import inspect
from ehm.backends.torch.models.loading import load_model
from ehm.backends.torch.models.torch_file import read_arrays
from ehm.config import ModelSource
from ehm.config.inputs import InputSpec
from ehm.deploy.export import export
from ehm.errors import CheckpointError
from ehm.models.opening import open_model
from ehm.models.published.hub_models import describe_timm
from ehm.models.published.settings import Settings
from ehm.models.published.table import convert_to_timm

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "img_size": 32}
VIT = {
    "model_type": "vit",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "layer_norm_eps": 1e-6,
}


def tensors():
    return randomise(timm.create_model("vit_base_patch16_224", **TINY, num_classes=0))


def as_transformers(state):
    """A ViT's names in transformers."""
    named = {
        "vit.embeddings.cls_token": state["cls_token"],
        "vit.embeddings.position_embeddings": state["pos_embed"],
        "vit.embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "vit.embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "vit.layernorm.weight": state["norm.weight"],
        "vit.layernorm.bias": state["norm.bias"],
    }
    parts = {
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
    }
    for block in range(2):
        for part in ("weight", "bias"):
            for ours, theirs in parts.items():
                named[f"vit.encoder.layer.{block}.{theirs}.{part}"] = state[f"blocks.{block}.{ours}.{part}"]
            joint = state[f"blocks.{block}.attn.qkv.{part}"].chunk(3)
            for name, value in zip(("query", "key", "value"), joint, strict=True):
                named[f"vit.encoder.layer.{block}.attention.attention.{name}.{part}"] = value.contiguous()
    return named


def write(folder, settings=VIT, weights=None, **files):
    """Write settings, weights and further files of JSON; return the folder as text."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(as_transformers(tensors()) if weights is None else weights, folder / "model.safetensors")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return str(folder)


def opened(folder):
    return open_model(ModelSource(init=str(folder)), read_arrays)


def test_settings_give_what_no_array_tells(tmp_path):
    weights = opened(write(tmp_path / "hub", VIT | {"layer_norm_eps": 1e-3, "hidden_act": "quick_gelu"}))
    assert weights.spec.heads == 2
    assert weights.spec.form.norm_epsilon == 1e-3
    assert weights.spec.form.mlp == "quick_gelu"
    assert weights.spec.image_size == (32, 32)
    for name, value in tensors().items():
        np.testing.assert_array_equal(weights.arrays[name], value.numpy(), err_msg=name)
    # what a configuration sets goes first
    source = ModelSource(init=str(tmp_path / "hub"), heads=4, form={"norm_epsilon": 1e-5})
    spec = open_model(source, read_arrays).spec
    assert (spec.heads, spec.form.norm_epsilon, spec.form.mlp) == (4, 1e-5, "quick_gelu")


def test_weights_in_shards_and_in_torchs_format_are_the_same(tmp_path):
    whole = as_transformers(tensors())
    expected = opened(write(tmp_path / "whole", weights=whole)).arrays
    write(tmp_path / "shards")
    (tmp_path / "shards/model.safetensors").unlink()
    places = {}
    for index, name in enumerate(whole):
        places[name] = f"model-{index % 2}.safetensors"
    for file in set(places.values()):
        save_file({name: whole[name] for name in whole if places[name] == file}, tmp_path / "shards" / file)
    index = tmp_path / "shards/model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    write(tmp_path / "torch")
    (tmp_path / "torch/model.safetensors").unlink()
    torch.save(whole, tmp_path / "torch/pytorch_model.bin")
    for folder in ("shards", "torch"):
        found = opened(tmp_path / folder)
        assert found.arrays.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found.arrays[name], array)
        assert len(found.provenance.sha256) == 64
    for place in ("../whole/model.safetensors", str(tmp_path / "whole/model.safetensors"), "absent"):
        index.write_text(json.dumps({"weight_map": {"a": place}}))
        with pytest.raises(CheckpointError, match="which is no file beside it"):
            opened(tmp_path / "shards")
    index.write_text(json.dumps({"weight_map": [1]}))
    with pytest.raises(CheckpointError, match="weight_map is no table"):
        opened(tmp_path / "shards")


def test_a_classifier_keeps_its_classes(tmp_path):
    head = {"classifier.weight": torch.ones(3, 32), "classifier.bias": torch.zeros(3)}
    labels = {"0": "cat", "1": "dog", "2": "cow"}
    folder = write(tmp_path / "hub", VIT | {"id2label": labels}, as_transformers(tensors()) | head)
    weights = opened(folder)
    assert weights.provenance.labels == ("cat", "dog", "cow")
    assert weights.provenance.pool == "token"
    folder = write(tmp_path / "other", VIT | {"id2label": {"0": "cat"}}, as_transformers(tensors()) | head)
    assert opened(folder).provenance.labels == ("0", "1", "2")


SIZES = {"height": 32, "width": 32}


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, InputSpec((0.5,) * 3, (0.5,) * 3)),
        ({"size": SIZES, "resample": 2}, InputSpec(crop_pct=1.0, crop_mode="squash", interpolation="bilinear")),
        ({"size": 32}, InputSpec(crop_pct=1.0, crop_mode="squash")),
        (
            {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": SIZES, "resample": 3},
            InputSpec(crop_pct=0.8),
        ),
        ({"size": 40, "do_center_crop": True, "crop_size": 32}, InputSpec(crop_pct=0.8)),
        ({"size": {"shortest_edge": 40}, "do_center_crop": False, "crop_size": SIZES}, InputSpec(crop_pct=1.0)),
        ({"do_normalize": False}, InputSpec((0.0,) * 3, (1.0,) * 3)),
        ({"rescale_factor": 1 / 255, "do_rescale": True}, InputSpec()),
    ],
)
def test_images_are_prepared_as_the_processor_says(tmp_path, processor, expected):
    assert opened(write(tmp_path / "hub", preprocessor_config=processor)).provenance.inputs == expected


def test_without_a_processor_a_note_says_what_is_assumed(tmp_path):
    (note,) = opened(write(tmp_path / "hub")).provenance.notes
    assert note.startswith("the folder does not say how images are prepared; assumed: mean [0.485")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "bert"}, "config.json: model_type 'bert': ehm has no such encoder; it reads vit, deit,"),
        ({"model_type": None}, "model_type None: ehm has no such encoder"),
        ({"hidden_act": "relu"}, "hidden_act 'relu': ehm's encoders have gelu"),
        ({"num_channels": 1}, "num_channels 1: encoders of 3 channels load"),
        ({"num_attention_heads": 2.5}, "num_attention_heads is 2.5, and not a whole number above 0"),
        ({"num_attention_heads": 10**9}, "and not a whole number above 0"),
        ({"image_size": "large"}, "image_size is 'large', and not a whole number"),
        ({"patch_size": [8, 4]}, "only square patches load"),
        ({"layer_norm_eps": -1}, "layer_norm_eps is -1, and not a number above 0"),
        ({"hidden_size": 48}, "its settings say width 48, and its weights 32"),
        ({"num_hidden_layers": 3}, "its settings say depth 3, and its weights 2"),
        ({"patch_size": 16}, "its settings say patch size 16, and its weights 8"),
        ({"model_type": "beit", "use_absolute_position_embeddings": True}, "use_absolute_position_embeddings True: "),
        ({"model_type": "aimv2_vision_model", "is_native": True}, "is_native True: positions"),
        ({"model_type": "dinov3_vit", "key_bias": True}, "key_bias True: keys have no bias"),
        ({"model_type": "dinov3_vit", "use_gated_mlp": True}, "hidden_act None: the gates"),
        ({"model_type": "swin", "use_absolute_embeddings": True}, "ehm's Swins have relative positions alone"),
        ({"model_type": "swin", "layer_norm_eps": 1e-6}, "layer_norm_eps 1e-06: ehm's Swins have 1e-05"),
    ],
)
def test_settings_that_ask_for_another_encoder_are_named(tmp_path, settings, message):
    folder = write(tmp_path / "hub", VIT | settings)
    with pytest.raises(CheckpointError) as said:
        opened(folder)
    assert message in str(said.value)
    assert "\n" not in str(said.value)


def test_broken_files_are_one_sentence(tmp_path):
    folder = tmp_path / "hub"
    write(folder)
    for content, message in (
        ("{", "not a file of settings in JSON"),
        ("[1]", "it holds a list"),
        ("[" * 100_000, "nested too deeply"),
    ):
        (folder / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=message):
            opened(folder)
    (folder / "config.json").write_text(json.dumps(VIT))
    for content, message in (
        ({"image_mean": [1, 2]}, "image_mean is .* and not three numbers"),
        ({"rescale_factor": 1}, "rescale_factor 1: ehm gives encoders pixels from 0 to 1"),
        ({"size": {"height": 3}}, "has no width"),
    ):
        (folder / "preprocessor_config.json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=message):
            opened(folder)
    (folder / "preprocessor_config.json").unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has settings, and no weights: model"):
        opened(folder)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_base_patch16_224", {}),
        ("vit_base_patch16_clip_quickgelu_224", {}),
        ("vit_base_patch16_siglip_224", {}),
        ("vit_so400m_patch16_siglip_256", {"mlp_ratio": 2.0}),
        ("vit_small_patch16_dinov3", {}),
        ("eva02_base_patch14_224", {}),
        ("beit_base_patch16_224", {}),
    ],
)
def test_a_folder_that_timm_saved(tmp_path, name, options):
    model = timm.create_model(name, **{**TINY, **options}, num_classes=0).eval()
    state = randomise(model)
    arguments = {**TINY, **options}
    settings = {
        "architecture": name,
        "num_classes": 0,
        "model_args": arguments,
        "pretrained_cfg": {
            "mean": [0.4, 0.5, 0.6],
            "std": [0.2, 0.2, 0.2],
            "crop_pct": 0.9,
            "interpolation": "bicubic",
        },
    }
    state = {key: value for key, value in state.items() if not key.endswith("index")}
    folder = write(tmp_path / "hub", settings, state)
    fc_norm = None if any(key.startswith("fc_norm") for key in state) else False
    loaded = load_model(ModelSource(init=folder), fc_norm=fc_norm)
    assert loaded.inputs == InputSpec((0.4, 0.5, 0.6), (0.2, 0.2, 0.2), 0.9)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = loaded.model.eval().forward_features(pixels)
    torch.testing.assert_close(found, model.forward_features(pixels), rtol=1e-4, atol=1e-5)
    # transformers keeps the same settings under its own name of the type
    write(
        tmp_path / "wrapped",
        settings | {"model_type": "timm_wrapper"},
        {f"timm_model.{k}": v for k, v in state.items()},
    )
    assert opened(tmp_path / "wrapped").spec == opened(tmp_path / "hub").spec


def test_arguments_of_timm_that_change_a_network_are_named(tmp_path):
    settings = {"architecture": "vit_base_patch16_224", "model_args": {"qk_norm": True}, "pretrained_cfg": {}}
    with pytest.raises(CheckpointError, match="model_args: qk_norm True: ehm does not know what this changes"):
        opened(write(tmp_path / "hub", settings, tensors()))
    settings = {"architecture": "vit_base_patch16_224", "pretrained_cfg": {"mean": [1]}}
    with pytest.raises(CheckpointError, match="json: pretrained_cfg: "):
        opened(write(tmp_path / "hub", settings | {"model_args": {"num_heads": 2}}, tensors()))


@pytest.mark.parametrize("name", [name for name in timm.list_models("vit_*siglip*") if "_384" not in name])
def test_the_activations_of_timms_siglips(name):
    side = 64 if "32" in name else 32
    model = timm.create_model(name, embed_dim=32, depth=1, num_heads=2, img_size=side, num_classes=0, mlp_ratio=1.0)
    published = convert_to_timm({key: value.numpy() for key, value in model.state_dict().items()})
    described = describe_timm(Settings({"architecture": name}, "config.json"), published.facts)
    expected = {"GELU": "gelu", "GELUTanh": "gelu_tanh"}[type(model.blocks[0].mlp.act).__name__]
    assert described.facts.activation == expected


@torch.inference_mode()
@pytest.mark.parametrize("quick", [True, False])
def test_a_folder_of_openclip(tmp_path, quick):
    name = "vit_base_patch16_clip_quickgelu_224" if quick else "vit_base_patch16_clip_224"
    model = timm.create_model(name, **TINY, num_classes=0).eval()
    state = as_openai_clip(randomise(model))
    tower = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    images = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear", "resize_mode": "squash"}
    settings = {"model_cfg": {"vision_cfg": tower, "quick_gelu": quick}, "preprocess_cfg": images}
    write(tmp_path / "hub", settings, state)
    (tmp_path / "hub/config.json").rename(tmp_path / "hub/open_clip_config.json")
    (tmp_path / "hub/model.safetensors").rename(tmp_path / "hub/open_clip_model.safetensors")
    loaded = load_model(ModelSource(init=str(tmp_path / "hub")), fc_norm=False)
    assert loaded.inputs == InputSpec((0.1, 0.2, 0.3), (0.5, 0.5, 0.5), 1.0, "squash", "bilinear")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = loaded.model.eval().forward_features(pixels)
    torch.testing.assert_close(found, model.forward_features(pixels), rtol=1e-4, atol=1e-5)


def test_a_folder_is_inspected_and_exported(tmp_path):
    """Both look for a checkpoint in a folder first."""
    folder = write(tmp_path / "hub")
    image = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(image)
    pages = inspect("hierarchy", [str(image)], checkpoint=folder, out=tmp_path / "pages", device="cpu")
    assert all(page.is_file() for page in pages)
    export(folder, out=tmp_path / "bundle", device="cpu")
    assert (tmp_path / "bundle/model.onnx").is_file()
