"""Rename the arrays of published checkpoints to timm's names, which are ours.

- facebookresearch/mae: they are timm's already.
- microsoft/unilm, BEiT: so they are, beside index tables that a model makes itself.
- microsoft/SimMIM: ``encoder.`` before the encoder's; ``decoder.0`` is the head.
- microsoft/SimMIM and microsoft/Swin-Transformer, Swin: a stage ends with the layer that merges its tokens, which
  begins the next one in timm, and the classifier is ``head``, not ``head.fc``.
"""

from __future__ import annotations

import re

from ehm.storage.arrays import Arrays

__all__ = ["rename_to_timm"]

_COMPUTED = ("relative_position_index", "relative_coords_table", "attn_mask")
"""Ends of the names of buffers that a model computes itself."""


def rename_to_timm(arrays: Arrays) -> Arrays:
    """Return ``arrays`` of a published file under timm's names, without buffers that a model computes itself.

    Arrays that have timm's names already keep them.
    """
    kept = {}
    for name, array in arrays.items():
        # the indices of a table are those of its own grid, and would not fit another
        if not name.endswith(_COMPUTED):
            kept[name.removeprefix("encoder.")] = array
    if "dist_token" in kept:
        # one more token before the patches, with a position of its own: what timm calls a register elsewhere
        kept["reg_token"] = kept.pop("dist_token")
    if "layers.0.downsample.reduction.weight" in kept:  # timm's first stage has none, so these are Microsoft's names
        return {_rename_in_swin(name): array for name, array in kept.items()}
    return kept


def _rename_in_swin(name: str) -> str:
    name = re.sub(r"^layers\.(\d+)\.downsample\.", lambda stage: f"layers.{int(stage[1]) + 1}.downsample.", name)
    return re.sub(r"^head\.", "head.fc.", name)
