"""Pooling of a network of timm's other than the one that it was made with."""

from __future__ import annotations

from typing import Any

from ehm.backends.torch.models.vit import VIT_CLASSES
from ehm.errors import ConfigError
from ehm.models.weights import Pool

__all__ = ["pool_as"]


def pool_as(model: Any, pool: Pool, origin: str) -> None:
    """Let a ViT of timm's without classifier pool as ``pool`` says; its last norm stays where it is.

    Raises ConfigError, which names ``origin``, for another network and for one without such a token or query.
    """
    # a subclass, as that of distilled networks, may have a head of another kind
    if type(model) not in VIT_CLASSES:
        raise ConfigError(
            f"pool {pool}: {origin} is a {type(model).__name__}, which pools in its own way; leave pool out"
        )
    if pool == "token" and model.cls_token is None:
        raise ConfigError(f"pool token: {origin} has no class token; set pool to avg")
    if pool == "map" and getattr(model, "attn_pool", None) is None:
        raise ConfigError(f"pool map: {origin} has no query that pools; set pool to avg")
    model.reset_classifier(0, pool)
