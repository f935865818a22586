"""Read the spec of a network of timm's: what its class was told, as far as a ViT of ours has it."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.attention import Attention
from timm.layers.attention_pool import AttentionPoolLatent
from timm.layers.pos_embed_sincos import RotaryEmbeddingCat, RotaryEmbeddingDinoV3
from timm.models import beit, eva, vision_transformer
from timm.models.swin_transformer import SwinTransformer

from ehm.backends.torch.engine.tensors import to_arrays
from ehm.backends.torch.models.build import build_encoder
from ehm.backends.torch.models.vit import VIT_CLASSES
from ehm.config import ModelSource
from ehm.config.encoders import EncoderSpec, Rotary, VitForm
from ehm.errors import CheckpointError
from ehm.models.published import convert_to_timm
from ehm.models.shapes import infer_spec
from ehm.storage.arrays import Arrays

__all__ = ["read_timm_spec"]

_BLOCKS = (vision_transformer.Block, beit.Block, eva.EvaBlock)
_ATTENTIONS = (Attention, beit.Attention, eva.EvaAttention)


def read_timm_spec(model: Any, name: str) -> tuple[EncoderSpec, Arrays] | None:
    """Return the spec of timm's ``model`` and its arrays under the names of our encoder; None if we have none like it.

    Our encoder has to have all parameters of the network but those of its head, in the same shapes.
    """
    if not isinstance(model, (*VIT_CLASSES, SwinTransformer)):
        return None
    arrays = convert_to_timm(to_arrays(model)).arrays
    try:
        spec = infer_spec(arrays, _describe_network(model, name))
    except (CheckpointError, _NotOursError):
        return None
    with torch.device("meta"):
        ours = build_encoder(spec, fc_norm="fc_norm.weight" in arrays and "norm.weight" not in arrays)
    for parameter, value in ours.state_dict().items():
        if parameter not in arrays or arrays[parameter].shape != tuple(value.shape):
            return None
    return spec, arrays


class _NotOursError(Exception):
    """The network has something that no form of ours describes."""


def _describe_network(model: Any, name: str) -> ModelSource:
    """Return what the shapes of a network do not tell: heads, image size, norms, activation and rotary positions."""
    height, width = model.patch_embed.img_size
    if isinstance(model, SwinTransformer):
        return ModelSource(init=name, image_size=(height, width))
    block = model.blocks[0]
    # other blocks may have the same parameters, and compute something else with them
    if type(block) not in _BLOCKS or type(block.attn) not in _ATTENTIONS:
        raise _NotOursError
    pool = getattr(model, "attn_pool", None)
    if pool is not None and not isinstance(pool, AttentionPoolLatent):
        raise _NotOursError
    norm = block.norm1
    form = VitForm(norm_epsilon=norm.eps, mlp=_describe_activation(block.mlp), rotary=_describe_rotary(model))
    return ModelSource(init=name, image_size=(height, width), heads=block.attn.num_heads, form=form)


def _describe_activation(mlp: Any) -> Any:
    """Return the kind of MLP; gates are told by shapes."""
    activation = type(getattr(mlp, "act", None)).__name__
    if activation == "QuickGELU":
        return "quick_gelu"
    if activation == "GELUTanh":
        return "gelu_tanh"
    if activation not in ("GELU", "SiLU"):
        raise _NotOursError
    return "gelu"


def _describe_rotary(model: Any) -> Rotary:
    """Return the rotary positions of timm's Eva, without a kind for another class and without them."""
    rope = getattr(model, "rope", None)
    if rope is None:
        return Rotary()
    if isinstance(rope, RotaryEmbeddingDinoV3) and rope.grid_offset == 0:
        return Rotary(kind="dinov3", temperature=rope.temperature, halves=rope.rotate_half)
    if isinstance(rope, RotaryEmbeddingCat) and rope.grid_offset == 0 and rope.grid_indexing == "ij":
        reference = rope.ref_feat_shape
        return Rotary(
            kind="eva",
            temperature=rope.temperature,
            halves=rope.rotate_half,
            reference_grid=None if reference is None else tuple(reference),
        )
    raise _NotOursError
