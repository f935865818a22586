"""Vision Transformers of timm's own classes, so that every parameter has timm's name.

A ViT with rotary positions is timm's ``Eva``, one with BEiT's relative positions its ``Beit``, and any other its
``VisionTransformer``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.layers.mlp import SwiGLU, SwiGLUPacked
from timm.layers.norm import RmsNorm
from timm.models import group_parameters
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ehm.config.encoders import LAYER_SCALE, PLAIN, VitForm, VitSpec
from ehm.models.weights import Pool

__all__ = ["VIT_CLASSES", "build_vit", "find_vit_class", "layers_of", "vit_sizes"]

VIT_CLASSES = (VisionTransformer, Beit, Eva)
"""The classes of timm's that :func:`build_vit` builds."""

_FIRST_LAYER_SCALE = 1e-5
"""Initial value of the factors of both branches of a block in DINOv2, DINOv3 and DeiT III."""
_MLPS: dict[str, dict[str, Any]] = {
    "gelu": {},
    "gelu_tanh": {"act_layer": "gelu_tanh"},
    "quick_gelu": {"act_layer": "quick_gelu"},
    "swiglu": {"mlp_layer": SwiGLU, "act_layer": nn.SiLU},
    "swiglu_packed": {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU},
}
"""Arguments of timm's VisionTransformer for each kind of MLP."""
_ROTARY_KINDS = {"eva": "cat", "dinov3": "dinov3"}
"""timm's names of the kinds of rotary positions."""


class _RmsNorm(RmsNorm):
    """Division by the root mean square of the features (Zhang and Sennrich, 2019), in plain operators.

    torch's own operator has no kernel in torch-npu, and warns if weights and features differ in type, as they do under
    autocast. As with layer normalisation there, it is computed in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D), float32."""
        x = x.float()
        normalised: Tensor = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps) * self.weight
        return normalised


def build_vit(
    spec: VitSpec,
    classes: int = 0,
    drop_path: float = 0.0,
    global_pool: Pool = "avg",
    fc_norm: bool | None = None,
) -> VisionTransformer | Beit | Eva:
    """Build a ViT of ``spec``: normalised (B, 3, H, W) -> (B, classes), or pooled features (B, D) for 0 classes.

    ``global_pool`` is ``avg`` (mean of the patch tokens), ``token`` (the class token) or ``map`` (a learned query). As
    in MAE's fine-tuning the last norm follows an average, unless ``fc_norm`` is False, and the head starts near zero
    (std 2e-5). The relative form has a table of biases in every block, as BEiT and SimMIM fine-tune.
    """
    kind: Any = find_vit_class(spec)
    options: dict[str, Any] = {"num_classes": classes, "global_pool": global_pool}
    if kind is VisionTransformer:
        options |= {"fc_norm": fc_norm, **_describe_form(spec.form)}
    elif kind is Eva:
        options |= {"use_fc_norm": fc_norm, **_describe_eva(spec.form)}
    else:
        options |= {"use_fc_norm": fc_norm, "use_rel_pos_bias": True}
    model: VisionTransformer | Beit | Eva = kind(**vit_sizes(spec, drop_path), **options)
    if isinstance(model.head, nn.Linear):
        nn.init.trunc_normal_(model.head.weight, std=2e-5)
    return model


def find_vit_class(spec: VitSpec) -> type[VisionTransformer] | type[Beit] | type[Eva]:
    """Return timm's class of a ViT of ``spec``."""
    if spec.relative:
        return Beit
    return VisionTransformer if spec.form.rotary.kind is None else Eva


def vit_sizes(spec: VitSpec, drop_path: float) -> dict[str, Any]:
    """Return the arguments of timm's class for ``spec``: VisionTransformer, Eva, or Beit without added positions."""
    ratio = spec.mlp_ratio
    if int(spec.width * ratio) != spec.hidden_features:
        # timm rounds down, and the ratio of two whole numbers may be a little less than it should be
        ratio = (spec.hidden_features + 0.5) / spec.width
    if spec.form.mlp == "swiglu_packed" and spec.form.rotary.kind is None:
        # timm's class counts the gate too
        ratio = 2 * spec.hidden_features / spec.width
    arguments = {
        "img_size": spec.image_size,
        "patch_size": spec.patch_size,
        "embed_dim": spec.width,
        "depth": spec.depth,
        "num_heads": spec.heads,
        "mlp_ratio": ratio,
        "drop_path_rate": drop_path,
        "norm_layer": _choose_norm(spec.form),
    }
    if spec.relative:
        arguments |= {"use_abs_pos_emb": False, "init_values": LAYER_SCALE}
    return arguments


def layers_of(model: Any) -> dict[str, int]:
    """Return the layer of every parameter of a timm model: the embedding (0), the blocks, the head with its norm.

    The head of a model in pretraining is all that predicts what is hidden, and its mask token.
    """
    layers: dict[str, int] = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    return layers


def _choose_norm(form: VitForm) -> Any:
    if form.norm == "rms":
        return partial(_RmsNorm, eps=form.norm_epsilon)
    return partial(nn.LayerNorm, eps=form.norm_epsilon)


def _describe_form(form: VitForm) -> dict[str, Any]:
    """Return the arguments of timm's VisionTransformer for ``form``; none for the plain one."""
    if form == PLAIN:
        return {}
    return {
        **_MLPS[form.mlp],
        "class_token": form.class_token,
        "reg_tokens": form.registers,
        "pos_embed": "learn" if form.added_positions else "none",
        "no_embed_class": not form.prefix_positions,
        "pre_norm": form.norm_before,
        "embed_norm_layer": _choose_norm(form) if form.norm_patches else None,
        "qkv_bias": form.bias,
        "qk_norm": form.norm_queries,
        "scale_attn_norm": form.norm_values,
        "scale_mlp_norm": form.norm_mlp,
        "proj_bias": form.output_bias,
        "init_values": _FIRST_LAYER_SCALE if form.layer_scale else None,
    }


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
