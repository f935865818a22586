"""Names of authors' files, against timm's own readers of the same files, and against timm's networks."""

import re
from functools import partial

import numpy as np
import pytest
import timm
import torch
from author_names import (
    as_aimv2,
    as_beit_blocks,
    as_deit3,
    as_dinov2,
    as_dinov3,
    as_eva02,
    as_openai_clip,
    below,
    randomise,
    rename,
)
from published import beit, beit_finetuned, random, simmim_swin, swin
from timm.models import beit as timms_beit
from timm.models import eva, swin_transformer, vision_transformer

from ehm.models.published import LAYOUTS, convert_to_timm

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 56}


def network(name, **options):
    """A tiny network of timm's architecture ``name``, and its random state."""
    model = timm.create_model(name, **{**TINY, "num_classes": 0, **options}).eval()
    return model, randomise(model)


def converted(tensors):
    return convert_to_timm({name: value.numpy() for name, value in tensors.items()})


def assert_equal(published, expected):
    """Compare all arrays of ``published`` but mask tokens with the tensors ``expected``."""
    arrays = {name: array for name, array in published.arrays.items() if name != "mask_token"}
    assert arrays.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(arrays[name], value.numpy(), rtol=0, atol=1e-6, err_msg=name)


vit = partial(network, "vit_base_patch16_224", patch_size=14)
layer_scaled = partial(vit, init_values=0.1)
EVA = {"use_fc_norm": False, "global_pool": "token"}
FILTERED = {
    "openai/CLIP": ("vit_base_patch16_clip_224", {"patch_size": 14}, as_openai_clip, vision_transformer),
    "dinov2": ("vit_small_patch14_dinov2", {}, as_dinov2, vision_transformer),
    "dinov2 SwiGLU": (
        "vit_giant_patch14_dinov2",
        {"mlp_ratio": 2.0, "mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU},
        as_dinov2,
        vision_transformer,
    ),
    "dinov2 registers": ("vit_small_patch14_reg4_dinov2", {}, as_dinov2, vision_transformer),
    "dinov3": ("vit_small_patch16_dinov3_qkvb", {"img_size": 64}, as_dinov3, eva),
    "dinov3 gates": ("vit_small_plus_patch16_dinov3_qkvb", {"img_size": 64}, as_dinov3, eva),
    "EVA-02 base": ("eva02_base_patch14_224", EVA, as_eva02, eva),
    "EVA-02 tiny": ("eva02_tiny_patch14_224", EVA, as_eva02, eva),
    "aimv2": ("aimv2_large_patch14_224", {}, as_aimv2, vision_transformer),
}
FAMILIES = {
    "openai/CLIP": "mlfoundations/open_clip",
    "dinov2": "facebookresearch/dinov2",
    "dinov2 SwiGLU": "facebookresearch/dinov2",
    "dinov2 registers": "facebookresearch/dinov2 with registers",
    "dinov3": "facebookresearch/dinov3",
    "dinov3 gates": "facebookresearch/dinov3",
    "EVA-02 base": "baaivision/EVA-02",
    "EVA-02 tiny": "baaivision/EVA-02",
    "aimv2": "apple/ml-aim, AIMv2",
}


@pytest.mark.parametrize("case", FILTERED)
def test_a_published_file_becomes_what_timm_makes_of_it(case):
    name, options, publish, module = FILTERED[case]
    model, state = network(name, **options)
    tensors = publish(state)
    published = converted(tensors)
    assert published.family == FAMILIES[case]
    assert_equal(published, state)
    # timm's reader of the same file, which has to agree but for what timm leaves aside otherwise
    theirs = module.checkpoint_filter_fn(dict(tensors), model)
    own = {name: value for name, value in theirs.items() if name in state}
    model.load_state_dict({name: torch.from_numpy(published.arrays[name]) for name in state}, strict=True)
    missing = {name for name in state if name not in own}
    assert all(name.startswith("fc_norm") or name.startswith("norm.") for name in missing)
    for name, value in own.items():
        torch.testing.assert_close(torch.from_numpy(published.arrays[name]), value, msg=name)


@pytest.mark.parametrize("chunk", [1, 2])
def test_blocks_in_chunks_are_numbered_through(chunk):
    _, state = network("vit_small_patch14_dinov2", depth=4)
    assert_equal(converted(as_dinov2(state, chunk)), state)


def test_a_mask_token_of_dinov2_becomes_one_of_ours():
    _, state = network("vit_small_patch14_dinov2")
    assert converted(as_dinov2(state)).arrays["mask_token"].shape == (1, 1, 32)


def test_parts_of_clip_beside_the_tower_are_named():
    _, state = network("vit_base_patch16_clip_224", patch_size=14)
    published = converted(as_openai_clip(state))
    assert published.notes == (
        "left aside, as no part of the encoder: logit_scale, proj, the tower for texts (3 tensors)",
    )
    assert published.facts.norm_epsilon == 1e-5
    assert published.facts.activation == "gelu"
    assert "model.form.mlp" in published.facts.assumed
    own = as_openai_clip(state) | {"input_resolution": torch.tensor(224)}
    assert converted(own).family == "openai/CLIP"
    assert converted(own).facts.activation == "quick_gelu"


def test_a_tower_of_timms_in_openclip():
    _, state = network("vit_base_patch16_siglip_224", patch_size=14)
    tensors = below("visual.trunk.", state) | {"text.ln_final.weight": torch.ones(4), "logit_bias": torch.ones(())}
    published = converted(tensors)
    assert_equal(published, state)
    assert published.family == "timm, SigLIP"
    assert published.facts.inputs.crop_mode == "squash"


def test_deit3_and_distilled_deit():
    model, state = layer_scaled(no_embed_class=True)
    published = converted(as_deit3(state))
    assert_equal(published, state)
    theirs = vision_transformer.checkpoint_filter_fn(as_deit3(state), model, adapt_layer_scale=True)
    assert theirs.keys() == state.keys()
    _, distilled = network("deit_tiny_distilled_patch16_224", num_classes=3, patch_size=14)
    published = converted(distilled)
    assert published.arrays["reg_token"].shape == (1, 1, 32)
    assert "head.weight" in published.arrays
    assert published.notes == ("left aside, as no part of the encoder: head_dist (2 tensors)",)


def test_dino_and_ibot_take_the_teacher():
    _, state = vit()
    student = {f"student.module.backbone.{name}": 2 * value for name, value in state.items()}
    teacher = below("teacher.backbone.", state) | {"teacher.head.mlp.0.weight": torch.ones(3)}
    published = converted(student | teacher | {"student.module.head.last_layer.weight": torch.ones(2)})
    assert_equal(published, state)
    aside = len(student) + 1
    assert published.notes == (f"left aside, as no part of the encoder: head, student ({aside} tensors)",)
    masked = converted(below("module.", state | {"masked_embed": torch.ones(1, 32)}))
    assert masked.arrays["mask_token"].shape == (1, 1, 32)


def test_moco_takes_the_base_encoder_without_its_projector():
    _, state = vit()
    base = below("module.base_encoder.", state | {"head.0.weight": torch.ones(4, 32), "head.1.bias": torch.ones(4)})
    momentum = {f"module.momentum_encoder.{name}": 2 * value for name, value in state.items()}
    published = converted(base | momentum | {"module.predictor.0.weight": torch.ones(4, 4)})
    assert_equal(published, state)
    assert published.family == "facebookresearch/moco-v3"
    assert published.facts.heads == {384: 12}
    assert published.notes == (
        f"left aside, as no part of the encoder: head (2 tensors), momentum_encoder ({len(state)} tensors), predictor",
    )


@pytest.mark.parametrize("order", [1, -1])
def test_msn_and_ijepa_take_the_target(order):
    _, state = vit()
    names = ("target_encoder.module.", "encoder.module.")[::order]
    tensors = {}
    for prefix in names:
        factor = 1.0 if prefix.startswith("target") else 2.0
        head = {"fc.fc1.weight": torch.ones(4, 32), "fc.bn1.running_mean": torch.ones(4)}
        tensors |= below(prefix, {name: factor * value for name, value in (state | head).items()})
    published = converted(tensors | {"prototypes": torch.ones(5, 4)})
    assert published.family == "facebookresearch/msn"
    assert_equal(published, state)
    _, state = vit(class_token=False, global_pool="")
    tensors = below(names[0], state) | below(names[1], state) | {"predictor.module.mask_token": torch.ones(1, 1, 4)}
    published = converted(tensors)
    assert published.family == "facebookresearch/ijepa"
    assert_equal(published, state)


def test_timm_agrees_about_ijepa():
    model, state = vit(class_token=False, global_pool="")
    theirs = vision_transformer.checkpoint_filter_fn({"encoder": below("module.", state)}, model)
    assert_equal(converted(below("encoder.module.", state)), theirs)


def test_localmim_has_a_norm_for_each_depth():
    _, state = vit()
    tensors = rename(state, (r"^norm\.", "norm.3."))
    for index in range(3):
        tensors |= {f"norm.{index}.weight": torch.ones(32), f"norm.{index}.bias": torch.ones(32)}
    tensors |= {"decoder.0.embed.weight": torch.ones(8, 32), "decoder.0.mask_token": torch.ones(1, 1, 8)}
    published = converted(tensors | {"hog_enc.0.conv.weight": torch.ones(2, 1, 3, 3)})
    assert published.family == "Haoqing-Wang/LocalMIM"
    assert_equal(published, state)
    assert published.notes[0].endswith("decoder (2 tensors), hog_enc, norm (6 tensors)")


@torch.inference_mode()
def test_cae_and_mfm_are_plain_vits():
    """Their blocks are BEiT's, which timm has: the same features come from there, and from a plain ViT."""
    model, state = layer_scaled()
    # a key's bias has no effect, so that it is zero in what comes back
    for name, bias in state.items():
        if name.endswith("qkv.bias"):
            bias[32:64] = 0
    model.load_state_dict(state)
    encoder = as_beit_blocks(state)
    cae = below("encoder.", encoder) | below("teacher.", encoder) | {"pretext_neck.head.weight": torch.ones(4, 32)}
    published = converted(cae | {"mask_token": torch.ones(1, 1, 32), "encoder_to_decoder.weight": torch.ones(4, 32)})
    assert published.family == "lxtGH/CAE"
    assert "mask_token" not in published.arrays
    assert_equal(published, state)
    mfm = converted(below("encoder.", encoder) | {"decoder.0.weight": torch.ones(8, 32, 1, 1)})
    assert "decoder.0.weight" in mfm.arrays
    reference = timms_beit.Beit(
        56, 14, num_classes=0, embed_dim=32, depth=2, num_heads=2, init_values=0.1, use_abs_pos_emb=True
    ).eval()
    reference.load_state_dict(rename(encoder, (r"^norm\.", "fc_norm.")), strict=True)
    pixels = torch.randn(2, 3, 56, 56)
    found = model.forward_features(pixels)[:, 1:]
    tokens = reference.forward_features(pixels)[:, 1:]
    torch.testing.assert_close(found, reference.fc_norm(tokens))


def test_beit_and_swin_stay_as_they_were():
    for shapes in (beit(2), beit_finetuned(2)):
        tensors = random(shapes)
        expected = {name: value for name, value in tensors.items() if not name.endswith("index")}
        published = converted(tensors)
        assert published.arrays.keys() == expected.keys()
    assert converted(random(beit(2))).facts.inputs.mean == (0.5, 0.5, 0.5)
    # BEiT v2's file has two blocks more, for a head on the class token
    v2 = converted(random(beit(2) | {"cls_pt_layers.0.norm1.weight": (24,)}))
    assert v2.family == "microsoft/unilm, BEiT v2"
    assert v2.notes == ("left aside, as no part of the encoder: cls_pt_layers",)
    tensors = random(swin(classes=5))
    model = swin_transformer.SwinTransformer(
        192, window_size=6, embed_dim=8, depths=(2, 2, 4, 2), num_heads=(1, 2, 4, 8)
    )
    theirs = swin_transformer.checkpoint_filter_fn(tensors, model)
    assert converted(tensors).arrays.keys() == theirs.keys()
    head = {
        name for name in converted(random(simmim_swin())).arrays if not name.startswith(("layers", "patch", "norm"))
    }
    assert head == {"mask_token", "decoder.0.weight", "decoder.0.bias"}


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_224",
        "vit_base_patch16_clip_224",
        "vit_base_patch16_siglip_224",
        "vit_small_patch14_reg4_dinov2",
        "vit_small_patch16_dinov3",
        "vit_small_plus_patch16_dinov3_qkvb",
        "eva02_tiny_patch14_224",
        "eva02_base_patch14_448",
        "eva02_base_patch16_clip_224",
        "aimv2_large_patch14_224",
        "beit_base_patch16_224",
    ],
)
def test_timms_names_stay_as_they_are(name):
    size = 64 if "16" in name else 56
    _, state = network(name, num_classes=3, img_size=size)
    published = converted(state)
    assert_equal(published, {name: value for name, value in state.items() if not name.endswith("index")})
    assert published.notes == ()
    assert published.facts.rotary.kind == {"dinov3": "dinov3", "eva02": "eva"}.get(
        next(iter(re.findall("dinov3|eva02", name)), None)
    )


def test_every_layout_has_a_name_of_its_own():
    families = [layout.family for layout in LAYOUTS]
    assert sorted({family for family in families if families.count(family) > 1}) == [
        "microsoft/unilm, BEiT",
        "timm, EVA-02",
    ]
