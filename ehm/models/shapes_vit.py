"""The sizes and the form of a ViT from the shapes of its arrays under timm's names."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from ehm.config import ModelSource
from ehm.config.encoders import VIT_PRESETS, VitForm, VitSpec
from ehm.config.pixel_format import MOST_CHANNELS
from ehm.errors import CheckpointError
from ehm.models.tables import CLASS_TOKEN_ROWS, SHARED_TABLE, TABLE, WITH_SETTINGS, check_tables, infer_image_size
from ehm.storage.arrays import Arrays

__all__ = ["count_parts", "has_packed_gate", "infer_vit", "read_patches", "refuse_other_positions", "require_names"]

_NAMES = ("patch_embed.proj.weight", "blocks.0.mlp.fc2.weight")
_OWN_TABLE = f"blocks.0.attn.{TABLE}"
_POSITIONS = ("pos_embed", "absolute_pos_embed")


def infer_vit(arrays: Arrays, source: ModelSource) -> VitSpec:
    """Infer the spec of a ViT; raises as :func:`ehm.models.shapes.infer_spec` does.

    Names and shapes tell the form but for the epsilon of norms, GELU's approximation and rotary positions, which are
    those of ``source.form``.
    """
    # pretraining has one table for all blocks, fine-tuning one in each, and a ViT with other positions none
    for table in (SHARED_TABLE, _OWN_TABLE):
        if table in arrays:
            return _infer_relative(arrays, table, source)
    require_names(arrays, _NAMES, source)
    width, patch_size, channels = read_patches(arrays, source)
    form = infer_form(arrays, source)
    depth = count_parts(arrays, r"blocks\.(\d+)\.")
    mlp_ratio = arrays["blocks.0.mlp.fc2.weight"].shape[1] / width
    heads = _infer_heads(source, width)
    if not form.added_positions:
        size = source.image_size or (14 * patch_size, 14 * patch_size)
        return VitSpec(size, patch_size, width, depth, heads, mlp_ratio, form=form, channels=channels)
    size, prefix_positions = _infer_image_size(arrays["pos_embed"].shape[1], form, patch_size, source)
    form = form.model_copy(update={"prefix_positions": prefix_positions})
    return VitSpec(size, patch_size, width, depth, heads, mlp_ratio, form=form, channels=channels)


def infer_form(arrays: Arrays, source: ModelSource) -> VitForm:
    """Infer the form of a ViT without tables of relative positions, but for the tokens that get a position."""

    def has(name: str) -> bool:
        return name in arrays

    if not has("pos_embed") and source.form.rotary.kind is None:
        raise CheckpointError(f"{source.init}: no ViT and no Swin with timm's names: pos_embed missing")
    mlp = source.form.mlp
    if has("blocks.0.mlp.fc1_g.weight"):
        mlp = "swiglu"
    elif has_packed_gate(arrays):
        mlp = "swiglu_packed"
    elif mlp.startswith("swiglu"):
        raise CheckpointError(f"{source.init}: its MLPs have no gate; model.form.mlp is gelu or quick_gelu")
    found: dict[str, Any] = {
        "class_token": has("cls_token"),
        "registers": arrays["reg_token"].shape[1] if has("reg_token") else 0,
        "added_positions": has("pos_embed"),
        "norm": "layer" if has("blocks.0.norm1.bias") else "rms",
        "norm_patches": has("patch_embed.norm.weight"),
        "norm_before": has("norm_pre.weight"),
        "norm_queries": has("blocks.0.attn.q_norm.weight"),
        "norm_values": has("blocks.0.attn.norm.weight"),
        "layer_scale": has("blocks.0.ls1.gamma") or has("blocks.0.gamma_1"),
        "bias": any(has(f"blocks.0.attn.{name}") for name in ("qkv.bias", "q_bias", "q_proj.bias")),
        "separate_heads": has("blocks.0.attn.q_proj.weight"),
        "output_bias": has("blocks.0.attn.proj.bias"),
        "mlp": mlp,
        "norm_mlp": has("blocks.0.mlp.norm.weight"),
        "attention_pool": has("attn_pool.latent"),
    }
    return source.form.model_copy(update=found)


def has_packed_gate(arrays: Arrays) -> bool:
    """Tell whether the first layer of an MLP has twice the rows that the last one takes: a gate and what it gates."""
    first = arrays.get("blocks.0.mlp.fc1.weight")
    last = arrays.get("blocks.0.mlp.fc2.weight")
    return first is not None and last is not None and len(first) == 2 * last.shape[1]


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


def read_patches(arrays: Arrays, source: ModelSource) -> tuple[int, int, int]:
    """Return the width of the embedding, the side of a patch and its channels.

    Raises CheckpointError if patches are not square, or have more channels than ehm reads.
    """
    width, channels, patch_size, across = arrays["patch_embed.proj.weight"].shape
    if channels > MOST_CHANNELS or patch_size != across:
        raise CheckpointError(
            f"{source.init}: its patches are {patch_size} x {across} of {channels} channels; only square ones of up to "
            f"{MOST_CHANNELS} load"
        )
    return width, patch_size, channels


def count_parts(names: Iterable[str], pattern: str) -> int:
    """Return one more than the highest number that ``pattern`` finds at the beginning of a name."""
    highest = -1
    for name in names:
        match = re.match(pattern, name)
        if match:
            highest = max(highest, int(match[1]))
    return 1 + highest


def _infer_relative(arrays: Arrays, table: str, source: ModelSource) -> VitSpec:
    """Infer the spec of a ViT with the biases for relative positions that are called ``table``."""
    require_names(arrays, ("cls_token", *_NAMES), source)
    refuse_other_positions(arrays, table, source)
    width, patch_size, channels = read_patches(arrays, source)
    rows, heads = arrays[table].shape
    size = infer_image_size(table, rows - CLASS_TOKEN_ROWS, patch_size, source)
    depth = count_parts(arrays, r"blocks\.(\d+)\.")
    mlp_ratio = arrays["blocks.0.mlp.fc2.weight"].shape[1] / width
    form = VitForm(norm_epsilon=source.form.norm_epsilon)
    spec = VitSpec(size, patch_size, width, depth, heads, mlp_ratio, relative=True, form=form, channels=channels)
    check_tables(arrays, spec, source.init)
    return spec


def _infer_image_size(
    positions: int, form: VitForm, patch_size: int, source: ModelSource
) -> tuple[tuple[int, int], bool]:
    """Return the image size that has so many ``positions``, and whether tokens before the patches have one too."""
    prefix = form.prefix_tokens
    size = source.image_size or (0, 0)
    wanted = (size[0] // patch_size) * (size[1] // patch_size)
    # 4 x 9 patches are as many as 6 x 6, so that the settings go first
    if wanted in (positions - prefix, positions):
        return size, wanted != positions or not prefix
    choices = [positions - prefix, positions]
    if form.registers > 1:
        # published ViTs with registers add positions to patches alone, and 9 positions could be 5 + 2 x 2
        choices.reverse()
    for patches in choices:
        side = math.isqrt(max(patches, 0))
        if side and side * side == patches:
            return (side * patch_size, side * patch_size), patches != positions or not prefix
    raise CheckpointError(
        f"{source.init}: its {positions - prefix} patches make no square; give the height and width as "
        f"model.image_size {WITH_SETTINGS}"
    )


def _infer_heads(source: ModelSource, width: int) -> int:
    # no shape of a plain ViT depends on the number of its heads
    published = {preset["width"]: preset["heads"] for preset in VIT_PRESETS.values()}
    heads = source.heads or published.get(width)
    if not isinstance(heads, int):
        raise CheckpointError(
            f"{source.init}: no published ViT is {width} wide; give the number of heads as model.heads {WITH_SETTINGS}"
        )
    return heads
