"""The arguments of timm's classes for a spec, as far as they are plain values: a framework adds the layers.

They are what timm's ``config.json`` calls ``model_args`` (:mod:`ehm.models.handover.timm_config`), and what the torch
backend builds networks from.
"""

from __future__ import annotations

from typing import Any, Literal

from ehm.config.encoders import LAYER_SCALE, PLAIN, SwinSpec, VitForm, VitSpec

__all__ = ["TimmClass", "describe_swin", "describe_vit", "describe_vit_sizes", "name_vit_class"]

TimmClass = Literal["VisionTransformer", "Beit", "Eva"]
"""Names of timm's classes of ViTs."""

_FIRST_LAYER_SCALE = 1e-5
"""Initial value of the factors of both branches of a block in DINOv2, DINOv3 and DeiT III."""
_ROTARY_KINDS = {"eva": "cat", "dinov3": "dinov3"}
"""timm's names of the kinds of rotary positions."""


def name_vit_class(spec: VitSpec) -> TimmClass:
    """Return the name of timm's class of a ViT of ``spec``."""
    if spec.relative:
        return "Beit"
    return "VisionTransformer" if spec.form.rotary.kind is None else "Eva"


def describe_vit(spec: VitSpec, fc_norm: bool | None) -> dict[str, Any]:
    """Return the arguments of timm's class for ``spec`` but for sizes and layers.

    With ``fc_norm`` the last norm stands after the pooling; None leaves that to timm, which goes by the pooling.
    """
    kind = name_vit_class(spec)
    if kind == "Beit":
        return {"use_fc_norm": fc_norm, "use_rel_pos_bias": True}
    if kind == "Eva":
        return {"use_fc_norm": fc_norm, **_describe_eva(spec.form)}
    return {"fc_norm": fc_norm, **_describe_form(spec.form)}


def describe_vit_sizes(spec: VitSpec) -> dict[str, Any]:
    """Return the sizes of ``spec`` for timm's VisionTransformer and Eva, or for its Beit without added positions."""
    ratio = spec.mlp_ratio
    if int(spec.width * ratio) != spec.hidden_features:
        # timm rounds down, and the ratio of two whole numbers may be a little less than it should be
        ratio = (spec.hidden_features + 0.5) / spec.width
    if spec.form.mlp == "swiglu_packed" and spec.form.rotary.kind is None:
        # timm's class counts the gate too
        ratio = 2 * spec.hidden_features / spec.width
    arguments: dict[str, Any] = {
        "img_size": spec.image_size,
        "patch_size": spec.patch_size,
        "embed_dim": spec.width,
        "depth": spec.depth,
        "num_heads": spec.heads,
        "mlp_ratio": ratio,
    }
    if spec.channels != 3:
        arguments["in_chans"] = spec.channels
    if spec.relative:
        arguments |= {"use_abs_pos_emb": False, "init_values": LAYER_SCALE}
    return arguments


def describe_swin(spec: SwinSpec) -> dict[str, Any]:
    """Return the arguments of timm's SwinTransformer for ``spec``."""
    arguments: dict[str, Any] = {
        "img_size": spec.image_size,
        "patch_size": spec.patch_size,
        "embed_dim": spec.width,
        "depths": spec.depths,
        "num_heads": spec.heads,
        "window_size": spec.window,
        "mlp_ratio": spec.mlp_ratio,
    }
    if spec.channels != 3:
        arguments["in_chans"] = spec.channels
    return arguments


def _describe_form(form: VitForm) -> dict[str, Any]:
    """Return the arguments of timm's VisionTransformer for ``form``; none for the plain one."""
    if form == PLAIN:
        return {}
    arguments: dict[str, Any] = {
        "class_token": form.class_token,
        "reg_tokens": form.registers,
        "pos_embed": "learn" if form.added_positions else "none",
        "no_embed_class": not form.prefix_positions,
        "pre_norm": form.norm_before,
        "qkv_bias": form.bias,
        "qk_norm": form.norm_queries,
        "scale_attn_norm": form.norm_values,
        "scale_mlp_norm": form.norm_mlp,
        "proj_bias": form.output_bias,
        "init_values": _FIRST_LAYER_SCALE if form.layer_scale else None,
    }
    if form.mlp.startswith("swiglu"):
        arguments["act_layer"] = "silu"
    elif form.mlp != PLAIN.mlp:
        # the approximations of GELU have timm's names
        arguments["act_layer"] = form.mlp
    return arguments


def _describe_eva(form: VitForm) -> dict[str, Any]:
    """Return the arguments of timm's Eva for ``form``, which has rotary positions."""
    rotary = form.rotary
    assert rotary.kind is not None
    return {
        "class_token": form.class_token,
        "num_reg_tokens": form.registers,
        "use_abs_pos_emb": form.added_positions,
        "no_embed_class": not form.prefix_positions,
        "use_rot_pos_emb": True,
        "rope_type": _ROTARY_KINDS[rotary.kind],
        "rope_temperature": rotary.temperature,
        "rope_rotate_half": rotary.halves,
        "ref_feat_shape": rotary.reference_grid,
        "use_pre_transformer_norm": form.norm_before,
        "qkv_bias": form.bias,
        "qkv_fused": not form.separate_heads,
        "qk_norm": form.norm_queries,
        "scale_attn_inner": form.norm_values,
        "swiglu_mlp": form.mlp.startswith("swiglu"),
        # a size that the hidden features are rounded up to: it makes timm keep the gate apart
        "swiglu_align_to": 1 if form.mlp == "swiglu" else 0,
        "scale_mlp": form.norm_mlp,
        "init_values": _FIRST_LAYER_SCALE if form.layer_scale else None,
    }
