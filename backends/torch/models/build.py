"""From an encoder's numbers to timm's class, with or without a classifier."""

from __future__ import annotations

from typing import Any, Literal

from ehm.backends.torch.models.swin import build_swin
from ehm.backends.torch.models.vit import build_vit
from ehm.config.encoders import EncoderSpec, SwinSpec
from ehm.errors import ConfigError

__all__ = ["build_encoder"]


def build_encoder(
    spec: EncoderSpec,
    classes: int = 0,
    drop_path: float = 0.0,
    pool: Literal["avg", "token"] = "avg",
    fc_norm: bool | None = None,
) -> Any:
    """An encoder of ``spec``: normalised (B, 3, H, W) -> (B, classes), or pooled features (B, D) for 0 classes.

    ``pool`` and ``fc_norm`` are :func:`build_vit`'s. A Swin's features are the mean of its last tokens behind their
    norm; ConfigError where the class token is asked of one.
    """
    if not isinstance(spec, SwinSpec):
        return build_vit(spec, classes, drop_path, pool, fc_norm)
    if pool == "token":
        raise ConfigError("pool token: a Swin has no class token; set pool to avg")
    return build_swin(spec, classes, drop_path)
