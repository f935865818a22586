"""The place of an encoder in a file: what stands before its names, and which of several encoders is meant.

Training programs save a whole program's state: a student and its teacher, a network inside of a wrapper, two towers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ehm.storage.arrays import Arrays, count_tensors

__all__ = ["count_left_aside", "drop_computed", "find_prefix", "split_at_prefix"]

_ANCHORS = (
    r"patch_embed\.proj\.weight",
    r"conv1\.weight",
    r"preprocessor\.patchifier\.proj\.weight",
    r"embeddings\.patch_embed\.weight",
    r"embeddings\.patch_embedding\.weight",
    r"embeddings\.patch_embeddings\.weight",
    r"embeddings\.patch_embeddings\.projection\.weight",
)
"""Ends of the name of the first layer in the layouts, below the encoder's prefix."""
_PARTS = (
    "model",
    "module",
    "state_dict",
    "backbone",
    "visual",
    "trunk",
    "timm_model",
    "vision_model",
    "image_encoder",
    "vit",
    "deit",
    "beit",
    "data2vec_vision",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
    "ijepa",
    "swin",
    "target_encoder",
    "base_encoder",
    "encoder",
    "teacher",
    "student",
    "momentum_encoder",
    "model_ema",
)
"""Parts of a prefix, those that authors evaluate first.

I-JEPA and MSN evaluate the target encoder, MoCo v3 the base encoder, CAE the encoder, and DINO and iBOT the teacher.
"""
_COMPUTED = re.compile(
    r"(relative_position_index|relative_coords_table|attn_mask|position_ids|bias_mask|periods|freqs_cos|freqs_sin)$"
)
"""Ends of the names of buffers that a model computes itself, for its own number of patches."""
_TEXT_PARTS = {"transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection"}
_TEXT_PARTS |= {"text_model", "text", "text_encoder", "text_projector"}
"""First parts of the names of a text's tower beside an image's."""


def find_prefix(arrays: Arrays) -> str:
    """Return what stands before the names of the encoder in ``arrays``, with its dot; empty if nothing does."""
    candidates = set()
    for name in arrays:
        for anchor in _ANCHORS:
            match = re.fullmatch(rf"((?:\w+\.)*){anchor}", name)
            if match and all(part in _PARTS for part in match[1].split(".")[:-1]):
                candidates.add(match[1])
    if not candidates:
        return ""
    return min(candidates, key=_rank_prefix)


def split_at_prefix(arrays: Arrays, prefix: str) -> tuple[Arrays, Arrays]:
    """Split ``arrays`` into those below ``prefix`` and those beside it, both without what their names share with it."""
    below = {}
    beside = {}
    for name, array in arrays.items():
        if name.startswith(prefix):
            below[name.removeprefix(prefix)] = array
        else:
            beside[_remove_shared(name, prefix)] = array
    return below, beside


def drop_computed(arrays: Arrays) -> Arrays:
    """Return ``arrays`` without buffers that a model computes itself."""
    # the indices of a table, for example, are those of its own grid, and would not fit another
    return {name: array for name, array in arrays.items() if not _COMPUTED.search(name)}


def count_left_aside(names: Iterable[str]) -> str:
    """Return the parts of a network that ``names`` belong to, each with its number of tensors."""
    return count_tensors(_name_part(name) for name in names)


def _name_part(name: str) -> str:
    """Return the first part of ``name``, or the words for a tower that encodes texts."""
    part = name.partition(".")[0]
    return "the tower for texts" if part in _TEXT_PARTS else part


def _rank_prefix(prefix: str) -> tuple[int, int, str]:
    """Order prefixes by their least wanted part, then by their length."""
    parts = prefix.split(".")[:-1]
    worst = max((_PARTS.index(part) for part in parts), default=-1)
    return worst, len(parts), prefix


def _remove_shared(name: str, prefix: str) -> str:
    """Return ``name`` without the first parts that it has in common with ``prefix``."""
    for part in prefix.split(".")[:-1]:
        rest = name.removeprefix(f"{part}.")
        if rest == name:
            break
        name = rest
    return name
