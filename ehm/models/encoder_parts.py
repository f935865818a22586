"""The rule that the encoder in a file of weights is loaded completely: only heads and decoders may be left out.

It is the same for every command and framework. No framework is imported here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from itertools import chain

from ehm.config.objectives import OBJECTIVES
from ehm.errors import CheckpointError

__all__ = ["HEADS", "refuse_foreign_parts", "refuse_unloaded"]

HEADS = tuple(dict.fromkeys(chain.from_iterable(objective.heads for objective in OBJECTIVES.values())))
"""Beginnings of the names of what pretraining has beside the encoder."""
_CLASSIFIER_PARTS = ("head", "heads", "head_dist", "fc_norm", "pre_logits", "classifier", "attn_pool")
"""First parts of the names of what follows the encoder: classifiers, and what prepares tokens for them."""
_LAST_NORM = "norm"
"""The encoder's last norm: a network with a norm after its pooling (``fc_norm``) does without, as in MAE."""
_FOREIGN = (
    (r"\brel_pos\.", "relative positions of another form, as in timm's vit_relpos networks"),
    (r"\.attn\.(logit_scale|cpb_mlp)\b", "cosine attention with computed positions, as in Swin V2"),
)
"""Patterns of names that identify a known family, and what its encoders have that ours lack."""
_REMEDY = (
    "ehm loads the encoder of a file whole or not at all; docs/weights.md lists the families, and timm:NAME, by timm's "
    "name of the network, loads others for fine-tuning and probing"
)


def refuse_foreign_parts(names: Iterable[str], origin: str) -> None:
    """Raise CheckpointError, which begins with ``origin``, if ``names`` show that ehm has no such encoder.

    Call it before the sizes of a file are read: for another family these need not make sense, and their error would
    hide the reason.
    """
    names = list(names)
    # a decoder that is left out anyway may be of any kind
    encoder = [name for name in names if not _is_head(name, "head")]
    for pattern, part in _FOREIGN:
        matches = [name for name in encoder if re.search(pattern, name)]
        if matches:
            raise CheckpointError(f"{origin}: its encoder has {part} ({_shorten_names(matches)}); {_REMEDY}")
    # which of two norms was trained to be the last one cannot be told, and the other would be lost
    if "fc_norm.weight" in names and "norm.weight" in names:
        raise CheckpointError(
            f"{origin}: its encoder has a norm before the pooling and another after it (norm.weight, "
            f"fc_norm.weight); {_REMEDY}"
        )


def refuse_unloaded(names: Iterable[str], loaded: Collection[str], origin: str, head: str = "head") -> None:
    """Raise CheckpointError, which begins with ``origin``, if a part of the encoder is not ``loaded``.

    Heads and decoders, known by their names, ``head`` among them, and the last norm may be left out.
    """
    unloaded = [name for name in names if name not in loaded and not _is_head(name, head)]
    if unloaded:
        raise CheckpointError(
            f"{origin}: {_shorten_names(unloaded)} would be left out, and only heads and decoders may be; {_REMEDY}"
        )


def _is_head(name: str, head: str) -> bool:
    """Tell whether a parameter belongs to a head, a decoder or the last norm, which may be left out."""
    first = name.partition(".")[0]
    return name.startswith((*HEADS, f"{head}.")) or first == _LAST_NORM or first in _CLASSIFIER_PARTS


def _shorten_names(names: list[str]) -> str:
    first = min(names)  # a safetensors file has no order of its own
    if len(names) == 1:
        return first
    return f"{first} and {len(names) - 1} more"
