"""From an encoder's numbers to a network with timm's parameter names, and the layers of its parameters."""

from __future__ import annotations

import re
from typing import Any

import mindspore as ms
import numpy as np

from ehm.backends.mindspore.models.swin import SwinTransformer
from ehm.backends.mindspore.models.vit import VisionTransformer
from ehm.config.encoders import EncoderSpec, SwinSpec
from ehm.models.weights import Pool, check_pool

__all__ = ["build_encoder", "layer_of"]

BUILDERS: dict[str, Any] = {"vit": VisionTransformer, "swin": SwinTransformer}
"""The class of each family: (spec, rng, classes, pool, fc_norm, dtype, probe) -> cell."""

_BEHIND = ("fc_norm.", "attn_pool.", "head.")
"""Beginnings of the names of what lies behind the blocks and their norm."""


def build_encoder(
    spec: EncoderSpec,
    rng: np.random.Generator,
    classes: int = 0,
    pool: Pool = "avg",
    fc_norm: bool | None = None,
    dtype: Any = ms.float32,
    probe: bool = False,
) -> Any:
    """Build an encoder of ``spec``: normalised (B, 3, H, W) -> (B, classes), or pooled features (B, D) for 0 classes.

    The arguments are those of :class:`VisionTransformer`. Whatever the family, the network has ``embed`` (tokens of the
    first block), ``compute_tokens`` (those of the last), ``pool_tokens``, ``norm_patches``, ``pool_images``,
    ``compute_similarity``, ``compute_features``, and with classes a ``head``. Raises ConfigError if the encoder cannot
    be pooled so.
    """
    check_pool(spec, pool)
    return BUILDERS[spec.family](spec, rng, classes, pool, fc_norm, dtype, probe)


def layer_of(name: str, spec: EncoderSpec) -> int:
    """Return the layer of a parameter as timm counts: the embedding (0), the blocks, the head.

    The last norm belongs to the last block, a norm behind the average to the head; a Swin's merging of tokens belongs
    to the block behind it.
    """
    if name.startswith(_BEHIND):
        return spec.blocks + 1
    if name.startswith("norm."):
        return spec.blocks
    if isinstance(spec, SwinSpec):
        stage = re.match(r"layers\.(\d+)\.(?:blocks\.(\d+))?", name)
        if stage is None:
            return 0
        return sum(spec.depths[: int(stage[1])]) + int(stage[2] or 0) + 1
    block = re.match(r"blocks\.(\d+)\.", name)
    return 0 if block is None else int(block[1]) + 1
