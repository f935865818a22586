"""From an encoder's numbers to timm's class, with or without a classifier."""

from __future__ import annotations

from typing import Any

from ehm.backends.torch.models.swin import build_swin
from ehm.backends.torch.models.vit import build_vit
from ehm.config.encoders import EncoderSpec
from ehm.models.weights import Pool, check_pool

__all__ = ["build_encoder"]

BUILDERS: dict[str, Any] = {"vit": build_vit, "swin": build_swin}
"""The function that builds the encoders of each family: (spec, classes, drop_path, pool, fc_norm) -> module."""


def build_encoder(
    spec: EncoderSpec,
    classes: int = 0,
    drop_path: float = 0.0,
    pool: Pool = "avg",
    fc_norm: bool | None = None,
) -> Any:
    """Build an encoder of ``spec``: normalised (B, 3, H, W) -> (B, classes), or pooled features (B, D) for 0 classes.

    ``pool`` and ``fc_norm`` are :func:`build_vit`'s. Raises ConfigError if the encoder cannot be pooled so.
    """
    check_pool(spec, pool)
    return BUILDERS[spec.family](spec, classes, drop_path, pool, fc_norm)
