"""Names of published checkpoints, as timm's, which are ours. Nothing else happens here.

- facebookresearch/mae: they are timm's already.
- microsoft/unilm, BEiT: so they are, beside index tables that a model makes itself.
- microsoft/SimMIM: ``encoder.`` before the encoder's; ``decoder.0`` is the head.
- microsoft/SimMIM and microsoft/Swin-Transformer, Swin: a stage ends with the layer that merges its tokens, which
  begins the next one in timm, and the classifier is ``head``, not ``head.fc``.
"""

from __future__ import annotations

import re

from ehm.storage.arrays import Arrays

__all__ = ["timm_names"]

_MADE = ("relative_position_index", "relative_coords_table", "attn_mask")
"""Buffers that a model makes itself."""


def timm_names(arrays: Arrays) -> Arrays:
    """``arrays`` of a published file, or under timm's names already, without buffers that a model makes itself."""
    kept = {name.removeprefix("encoder."): array for name, array in arrays.items() if not name.endswith(_MADE)}
    if "layers.0.downsample.reduction.weight" in kept:  # timm's first stage has none
        return {_timms_swin(name): array for name, array in kept.items()}
    return kept


def _timms_swin(name: str) -> str:
    name = re.sub(r"^layers\.(\d+)\.downsample\.", lambda stage: f"layers.{int(stage[1]) + 1}.downsample.", name)
    return re.sub(r"^head\.", "head.fc.", name)
