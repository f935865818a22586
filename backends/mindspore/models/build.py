"""From an encoder's numbers to a network with timm's parameter names."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np

from ehm.backends.mindspore.models.swin import SwinTransformer
from ehm.backends.mindspore.models.vit import VisionTransformer
from ehm.config.encoders import EncoderSpec
from ehm.models.weights import Pool, check_pool

__all__ = ["build_encoder"]

BUILDERS: dict[str, Any] = {"vit": VisionTransformer, "swin": SwinTransformer}
"""The class of each family: (spec, rng, classes, pool, fc_norm, dtype, probe) -> cell."""


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
