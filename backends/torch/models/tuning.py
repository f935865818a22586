"""Parameters of a model that learn, if not all of them do: by frozen blocks, by low-rank updates, or by both."""

from __future__ import annotations

from typing import Any

from torch import nn

from ehm.backends.torch.engine.seeds import seed_weights
from ehm.backends.torch.models.adapters import add_adapters
from ehm.backends.torch.models.vit import find_layers
from ehm.config import LoraConfig
from ehm.errors import ConfigError

__all__ = ["list_blocks", "restrict_learning"]


def restrict_learning(model: nn.Module, encoder: Any, frozen: int, lora: LoraConfig, seed: int) -> tuple[str, ...]:
    """Let the first ``frozen`` blocks of ``encoder`` not learn, and of the others only what ``lora`` says.

    ``encoder`` is ``model`` or a part of it: a timm model, or one in pretraining, whose decoders and heads go on
    learning like all that lies outside. The updates begin by ``seed``. Returns a note on how many parameters learn, and
    none if all do. Raises ConfigError if the encoder has no such blocks or layers, BackendError if peft is missing.
    """
    if not frozen and lora.rank is None:
        return ()
    blocks = list_blocks(encoder)
    if frozen:
        _freeze_blocks(encoder, frozen, len(blocks))
    if lora.rank is not None:
        if frozen >= len(blocks):
            raise ConfigError(
                f"lora.rank {lora.rank}: this encoder ({type(encoder).__name__}) has {len(blocks)} blocks, and none of "
                "them learns"
            )
        _freeze_weights(encoder, len(blocks), lora.norms)
        with seed_weights(seed):
            add_adapters(blocks[frozen:], lora)
    sizes = [parameter.numel() for parameter in model.parameters()]
    learning = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    return (f"{sum(learning):,} of {sum(sizes):,} parameters learn",)


def list_blocks(encoder: Any) -> list[nn.Module]:
    """Return the blocks of a ViT, or of all stages of a Swin, in order; a network without attention has none."""
    blocks: list[nn.Module] = []
    for part in getattr(encoder, "blocks", None) or getattr(encoder, "layers", None) or ():
        blocks += getattr(part, "blocks", [part])
    return [block for block in blocks if hasattr(block, "attn")]


def _freeze_blocks(encoder: Any, count: int, blocks: int) -> None:
    """Freeze the first ``count`` of ``blocks``, and patch embedding, class token, registers and positions before."""
    if count > blocks:
        raise ConfigError(f"model.freeze {count}: this encoder ({type(encoder).__name__}) has {blocks} blocks")
    layers = find_layers(encoder)
    for name, parameter in encoder.named_parameters():
        # timm counts the norm behind the blocks as a part of the last one
        if layers[name] <= count and not name.startswith("norm."):
            parameter.requires_grad_(False)


def _freeze_weights(encoder: Any, blocks: int, norms: bool) -> None:
    """Freeze all of an encoder of so many ``blocks``, but for ``norms`` if they shall learn, and heads above it."""
    layers = find_layers(encoder)
    for name, parameter in encoder.named_parameters():
        module = name.rpartition(".")[0].rpartition(".")[2]
        if layers[name] <= blocks and not (norms and "norm" in module):
            parameter.requires_grad_(False)
