"""The sizes of a ViT from the shapes of its arrays under timm's names."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from ehm.config import ModelSource
from ehm.config.encoders import VIT_PRESETS, VitSpec
from ehm.errors import CheckpointError
from ehm.models.tables import CLASS_TOKEN_ROWS, SHARED_TABLE, TABLE, WITH_SETTINGS, check_tables, infer_image_size
from ehm.storage.arrays import Arrays

__all__ = ["count_parts", "infer_vit", "read_patches", "refuse_other_positions", "require_names"]

_NAMES = ("cls_token", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
_OWN_TABLE = f"blocks.0.attn.{TABLE}"
_POSITIONS = ("pos_embed", "absolute_pos_embed")


def infer_vit(arrays: Arrays, source: ModelSource) -> VitSpec:
    """Infer the spec of a ViT; raises as :func:`ehm.models.shapes.infer_spec` does."""
    # pretraining has one table for all blocks, fine-tuning one in each, and a plain ViT none
    positions = "pos_embed"
    for table in (_OWN_TABLE, SHARED_TABLE):
        if table in arrays:
            positions = table
    require_names(arrays, (*_NAMES, positions), source)
    refuse_other_positions(arrays, positions, source)
    width, patch_size = read_patches(arrays, source)
    depth = count_parts(arrays, r"blocks\.(\d+)\.")
    mlp_ratio = arrays["blocks.0.mlp.fc1.weight"].shape[0] / width  # a row for each hidden feature
    if positions == "pos_embed":
        # the class token has a position too
        size = _infer_image_size(arrays[positions].shape[1] - 1, patch_size, source)
        return VitSpec(size, patch_size, width, depth, _infer_heads(source, width), mlp_ratio)
    rows, heads = arrays[positions].shape
    size = infer_image_size(positions, rows - CLASS_TOKEN_ROWS, patch_size, source)
    spec = VitSpec(size, patch_size, width, depth, heads, mlp_ratio, relative=True)
    check_tables(arrays, spec, source.init)
    return spec


def require_names(arrays: Arrays, names: Iterable[str], source: ModelSource) -> None:
    """Raise CheckpointError if one of ``names`` is not among ``arrays``."""
    missing = [name for name in names if name not in arrays]
    if missing:
        raise CheckpointError(f"{source.init}: no ViT and no Swin with timm's names: {', '.join(missing)} missing")


def refuse_other_positions(arrays: Arrays, positions: str, source: ModelSource) -> None:
    """Raise CheckpointError if ``arrays`` have other positions beside those named ``positions``."""
    for name in (_OWN_TABLE, *_POSITIONS):
        if name in arrays and name != positions:
            raise CheckpointError(f"{source.init}: has {name} beside other positions; encoders with one kind load")


def read_patches(arrays: Arrays, source: ModelSource) -> tuple[int, int]:
    """Return the width of the embedding and the side of a patch; CheckpointError if patches are not RGB squares."""
    width, channels, patch_size, across = arrays["patch_embed.proj.weight"].shape
    if channels != 3 or patch_size != across:
        raise CheckpointError(
            f"{source.init}: its patches are {patch_size} x {across} of {channels} channels; only square ones of 3 load"
        )
    return width, patch_size


def count_parts(names: Iterable[str], pattern: str) -> int:
    """Return one more than the highest number that ``pattern`` finds at the beginning of a name."""
    highest = -1
    for name in names:
        match = re.match(pattern, name)
        if match:
            highest = max(highest, int(match[1]))
    return 1 + highest


def _infer_image_size(patches: int, patch_size: int, source: ModelSource) -> tuple[int, int]:
    # 4 x 9 patches are as many as 6 x 6, so that the settings go first
    size = source.image_size or (0, 0)
    if (size[0] // patch_size) * (size[1] // patch_size) == patches:
        return size
    side = math.isqrt(patches)
    if side * side != patches:
        raise CheckpointError(
            f"{source.init}: its {patches} patches make no square; give the height and width as model.image_size "
            f"{WITH_SETTINGS}"
        )
    return side * patch_size, side * patch_size


def _infer_heads(source: ModelSource, width: int) -> int:
    # no shape of a plain ViT depends on the number of its heads
    published = {preset["width"]: preset["heads"] for preset in VIT_PRESETS.values()}
    heads = source.heads or published.get(width)
    if not isinstance(heads, int):
        raise CheckpointError(
            f"{source.init}: no published ViT is {width} wide; give the number of heads as model.heads {WITH_SETTINGS}"
        )
    return heads
