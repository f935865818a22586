"""Folders that Hugging Face's transformers saves, against the features of its own networks.

Networks are tiny and random, of transformers' own classes and configurations.
"""

import re

import numpy as np
import pytest
import torch
from timm.layers.pos_embed import resample_abs_pos_embed

from ehm.backends.torch.models.loading import load_initial_weights, load_model
from ehm.backends.torch.models.torch_file import read_arrays
from ehm.backends.torch.objectives import create_objective
from ehm.config import ModelSource, TrainConfig
from ehm.models.opening import open_model
from ehm.models.published.hub_transformers import MODEL_TYPES

transformers = pytest.importorskip("transformers")

SIDE = 32
LARGER = 48
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": SIDE,
    "patch_size": 8,
}
RATIO = {name: value for name, value in SIZES.items() if name != "intermediate_size"}
NAFLEX = {name: value for name, value in SIZES.items() if name != "image_size"} | {"num_patches": 16}
SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4], "window_size": 4}
CASES = {
    "vit": ("ViTModel", "ViTConfig", SIZES),
    "deit": ("DeiTModel", "DeiTConfig", SIZES),
    "vit_mae": ("ViTMAEModel", "ViTMAEConfig", SIZES | {"mask_ratio": 0.0}),
    "vit_msn": ("ViTMSNModel", "ViTMSNConfig", SIZES),
    "ijepa": ("IJepaModel", "IJepaConfig", SIZES),
    "beit": ("BeitModel", "BeitConfig", SIZES | {"use_relative_position_bias": True, "use_mean_pooling": False}),
    "beit shared": (
        "BeitModel",
        "BeitConfig",
        SIZES | {"use_shared_relative_position_bias": True, "use_mean_pooling": False},
    ),
    "data2vec-vision": (
        "Data2VecVisionModel",
        "Data2VecVisionConfig",
        SIZES | {"use_relative_position_bias": True, "use_mean_pooling": False},
    ),
    "dinov2": ("Dinov2Model", "Dinov2Config", RATIO),
    "dinov2 SwiGLU": ("Dinov2Model", "Dinov2Config", RATIO | {"use_swiglu_ffn": True}),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", RATIO),
    "dinov3_vit": ("DINOv3ViTModel", "DINOv3ViTConfig", SIZES | {"num_register_tokens": 2}),
    "dinov3_vit gated": (
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        SIZES | {"num_register_tokens": 2, "use_gated_mlp": True, "hidden_act": "silu", "rope_theta": 50.0},
    ),
    "clip_vision_model": ("CLIPVisionModel", "CLIPVisionConfig", SIZES),
    "clip_vision_model gelu": ("CLIPVisionModel", "CLIPVisionConfig", SIZES | {"hidden_act": "gelu"}),
    "siglip_vision_model": ("SiglipVisionModel", "SiglipVisionConfig", SIZES),
    "aimv2_vision_model": ("Aimv2VisionModel", "Aimv2VisionConfig", SIZES),
    "swin": ("SwinModel", "SwinConfig", SWIN),
}
WITH_TABLES = ("beit", "data2vec-vision", "swin")
"""Encoders whose tables of relative positions are resampled; test_published.py compares them with torch."""


def build(case, seed=0, **sizes):
    """A network of transformers with parameters that all matter."""
    model_class, config_class, options = CASES[case]
    config = getattr(transformers, config_class)(**{**options, **sizes})
    model = getattr(transformers, model_class)(config)
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        noise = 0.2 * torch.randn(value.shape, generator=generator)
        is_scale = value.ndim == 1 and name.endswith("weight")
        value.data = noise + float(is_scale)
    return model.eval()


@pytest.fixture(scope="module", params=CASES)
def saved(request, tmp_path_factory):
    """Network and folder of a case."""
    folder = tmp_path_factory.mktemp("hub")
    model = build(request.param)
    model.save_pretrained(folder)
    return request.param, model, folder


def expected_tokens(case, model, pixels, **options):
    """Patch tokens behind the last norm, without class token and registers: (B, N, D)."""
    output = model(pixels, **options)
    tokens = output.last_hidden_state
    if case.startswith("clip"):
        tokens = model.post_layernorm(tokens)
    if case == "vit_mae":
        # patches come back in the order of random numbers
        order = output.ids_restore[..., None].expand(-1, -1, tokens.shape[2])
        tokens = torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, order)], 1)
    patches = (pixels.shape[2] // 8) * (pixels.shape[3] // 8)
    return tokens if case == "swin" else tokens[:, -patches:]


def found_tokens(model, pixels):
    """The same of a network of ours."""
    tokens = model.forward_features(pixels)
    if tokens.ndim == 4:  # a Swin's
        return tokens.flatten(1, 2)
    patches = (pixels.shape[2] // 8) * (pixels.shape[3] // 8)
    return tokens[:, -patches:]


@torch.inference_mode()
def test_features_are_those_of_transformers(saved):
    case, model, folder = saved
    loaded = load_model(ModelSource(init=str(folder)), fc_norm=False)
    pixels = torch.randn(2, 3, *loaded.image_size, generator=torch.Generator().manual_seed(1))
    found = found_tokens(loaded.model.eval(), pixels)
    torch.testing.assert_close(found, expected_tokens(case, model, pixels), rtol=1e-4, atol=1e-5)
    assert loaded.provenance.kind == "file"
    assert "assumed" not in " ".join(loaded.notes).replace("how images are prepared; assumed", "")


@torch.inference_mode()
def test_and_at_another_size(saved):
    """The reference is transformers' network for that size, with positions that timm resampled."""
    case, model, folder = saved
    if case.startswith(WITH_TABLES):
        return
    loaded = load_model(ModelSource(init=str(folder), image_size=(LARGER, LARGER)), fc_norm=False)
    pixels = torch.randn(2, 3, LARGER, LARGER, generator=torch.Generator().manual_seed(1))
    found = found_tokens(loaded.model.eval(), pixels)
    larger = build(case, image_size=LARGER)
    larger.load_state_dict(resample(model.state_dict()))
    torch.testing.assert_close(found, expected_tokens(case, larger, pixels), rtol=1e-4, atol=1e-5)


def resample(state):
    """The state with positions for the larger size; tokens before the patches keep theirs."""
    resampled = dict(state)
    for name, value in state.items():
        if re.search(r"position_embeddings?(\.weight)?$", name):
            positions = value if value.ndim == 3 else value[None]
            prefix = positions.shape[1] - (SIDE // 8) ** 2
            grid = [LARGER // 8] * 2
            positions = resample_abs_pos_embed(positions, grid, num_prefix_tokens=prefix)
            resampled[name] = positions if value.ndim == 3 else positions[0]
    return resampled


@torch.inference_mode()
def test_siglip_pools_by_attention(tmp_path):
    model = build("siglip_vision_model")
    model.save_pretrained(tmp_path)
    loaded = load_model(ModelSource(init=str(tmp_path)), pool="map")
    assert loaded.provenance.pool == "map"
    pixels = torch.randn(2, 3, SIDE, SIDE)
    torch.testing.assert_close(loaded.model.eval()(pixels), model(pixels).pooler_output, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_siglip_2_takes_patches_and_their_number(tmp_path):
    torch.manual_seed(0)
    model = transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**NAFLEX)).eval()
    model.save_pretrained(tmp_path)
    loaded = load_model(ModelSource(init=str(tmp_path)), fc_norm=False)
    assert loaded.image_size == (SIDE, SIDE)
    pixels = torch.randn(2, 3, SIDE, SIDE)
    patches = pixels.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).reshape(2, 16, 192)
    shapes = torch.tensor([[4, 4], [4, 4]])
    expected = model(patches, pixel_attention_mask=torch.ones(2, 16), spatial_shapes=shapes).last_hidden_state
    torch.testing.assert_close(found_tokens(loaded.model.eval(), pixels), expected, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("model_class", "config_class", "options"),
    [
        ("ViTForImageClassification", "ViTConfig", SIZES),
        ("BeitForImageClassification", "BeitConfig", SIZES | {"use_relative_position_bias": True}),
        ("SwinForImageClassification", "SwinConfig", SWIN),
    ],
)
def test_classifiers_give_transformers_logits(tmp_path, model_class, config_class, options):
    config = getattr(transformers, config_class)(**options, num_labels=3, layer_norm_eps=1e-5)
    model = getattr(transformers, model_class)(config).eval()
    model.save_pretrained(tmp_path)
    weights = open_model(ModelSource(init=str(tmp_path)), read_arrays)
    assert weights.provenance.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    loaded = load_model(ModelSource(init=str(tmp_path)), classes=3, pool=weights.provenance.pool)
    head = "head.fc" if "Swin" in model_class else "head"
    state = loaded.model.state_dict()
    for part in ("weight", "bias"):
        state[f"{head}.{part}"] = torch.from_numpy(weights.arrays[f"{head}.{part}"])
    loaded.model.load_state_dict(state)
    pixels = torch.randn(2, 3, *loaded.image_size)
    torch.testing.assert_close(loaded.model.eval()(pixels), model(pixels).logits, rtol=1e-4, atol=1e-5)


def test_a_mae_keeps_its_decoder_under_our_names(tmp_path):
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = transformers.ViTMAEConfig(**SIZES, **decoder, decoder_intermediate_size=24, layer_norm_eps=1e-6)
    transformers.ViTMAEForPreTraining(config).save_pretrained(tmp_path)
    found = open_model(ModelSource(init=str(tmp_path)), read_arrays).arrays
    run = {"objective": "mae", "encoder": "vit_tiny", "image_size": SIDE, "patch_size": 8}
    sizes = {"width": 32, "depth": 2, "heads": 2, "mlp_ratio": 1.5}
    run["model"] = {**sizes, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2, "init": str(tmp_path)}
    config = TrainConfig.model_validate(run)
    model = create_objective(config, torch.device("cpu")).build_model()
    notes = load_initial_weights(model, config)
    assert not [note for note in notes if "afresh" in note or "not used" in note or "left aside" in note]
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), found[name], err_msg=name)


def test_a_network_of_two_towers_gives_its_images_tower(tmp_path):
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.CLIPConfig(vision_config=SIZES, text_config=text | {"vocab_size": 20})
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    loaded = load_model(ModelSource(init=str(tmp_path)), fc_norm=False)
    assert any("the tower for texts" in note and "logit_scale" in note for note in loaded.notes)
    pixels = torch.randn(2, 3, SIDE, SIDE)
    with torch.inference_mode():
        expected = model.vision_model.post_layernorm(model.vision_model(pixels).last_hidden_state)
        found = loaded.model.eval().forward_features(pixels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_every_type_has_a_case():
    """Two names of one type: a network of two towers, and its tower alone."""
    towers = {"clip", "siglip", "siglip2", "siglip2_vision_model", "aimv2"}
    assert {case.partition(" ")[0] for case in CASES} == MODEL_TYPES.keys() - towers
