"""Parts of an encoder that stay as they are while the rest of a model learns."""

from __future__ import annotations

from typing import Any

from torch import nn

from ehm.backends.torch.models.vit import layers_of
from ehm.errors import ConfigError

__all__ = ["count_learning", "freeze_blocks", "list_blocks"]


def list_blocks(encoder: Any) -> list[nn.Module]:
    """Return the blocks of a ViT, or of all stages of a Swin, in order; a network without attention has none.

    ``encoder`` is a timm model, or a model in pretraining, whose decoder does not count.
    """
    blocks: list[nn.Module] = []
    for part in getattr(encoder, "blocks", None) or getattr(encoder, "layers", None) or ():
        blocks += getattr(part, "blocks", [part])
    return [block for block in blocks if hasattr(block, "attn")]


def freeze_blocks(encoder: Any, count: int) -> None:
    """Let the first ``count`` blocks not learn, nor patch embedding, class token, registers and positions before them.

    With 0 blocks everything learns. ``encoder`` is as for :func:`list_blocks`. Raises ConfigError if it does not have
    so many blocks.
    """
    if not count:
        return
    blocks = len(list_blocks(encoder))
    if count > blocks:
        raise ConfigError(f"model.freeze {count}: this encoder ({type(encoder).__name__}) has {blocks} blocks")
    layers = layers_of(encoder)
    for name, parameter in encoder.named_parameters():
        # timm counts the norm behind the blocks as a part of the last one
        if layers[name] <= count and not name.startswith("norm."):
            parameter.requires_grad_(False)


def count_learning(model: nn.Module) -> str:
    """Say how many of the parameters of ``model`` learn."""
    sizes = [parameter.numel() for parameter in model.parameters()]
    learning = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    return f"{sum(learning):,} of {sum(sizes):,} parameters learn"
