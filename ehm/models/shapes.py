"""What sizes an encoder has: read from the arrays of a bare file, asked for by settings, written into checkpoints."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from ehm.config import ModelSource
from ehm.config.encoders import VIT_PRESETS, EncoderSpec, SwinSpec, VitSpec
from ehm.errors import CheckpointError, ConfigError
from ehm.models.resample import TABLE, window_of
from ehm.storage.arrays import Arrays

__all__ = ["SHARED_TABLE", "at_size", "check_sizes", "describe", "described", "guessed", "sizes"]

SHARED_TABLE = f"rel_pos_bias.{TABLE}"
"""Name of the biases for relative positions that all blocks of a ViT share in pretraining."""
_WITH_SETTINGS = "(--set; a command without it takes the run's folder, which says it)"
"""What to do about a fact that a file does not say: ehm inspect has no settings."""
_TO_CLASS_TOKEN = 3
"""Rows of a ViT's table for the class token: from it, to it, and to itself."""


def sizes(arrays: Arrays, source: ModelSource) -> EncoderSpec:
    """Those of a ViT, a ViT in the relative form or a Swin, from the shapes of ``arrays`` under timm's names.

    Heads are those of the tables of relative positions, or of the published ViT of that width; a Swin's windows those
    of its tables. The grid is that of ``source.image_size`` where it has as many places, else taken as square, a Swin's
    as one window of its last stage, which changes no weight.
    Raises CheckpointError where they are none of these, or ``source`` has to say what the shapes leave open.
    """
    swin, own = f"layers.0.blocks.0.attn.{TABLE}" in arrays, f"blocks.0.attn.{TABLE}"
    places = next((name for name in (SHARED_TABLE, own) if name in arrays), "pos_embed")
    missing = [name for name in (_SWIN if swin else (*_VIT, places)) if name not in arrays]
    if missing:
        raise CheckpointError(f"{source.init}: no ViT and no Swin with timm's names: {', '.join(missing)} missing")
    others = [name for name in (own, "pos_embed", "absolute_pos_embed") if name in arrays and name != places]
    if others:
        raise CheckpointError(f"{source.init}: has {others[0]} beside other positions; encoders with one kind load")
    width, channels, patch, across = arrays["patch_embed.proj.weight"].shape
    if channels != 3 or patch != across:
        raise CheckpointError(
            f"{source.init}: its patches are {patch} x {across} of {channels} channels; only square ones of 3 load"
        )
    if swin:
        return _swin(arrays, source, width, patch)
    depth, ratio = _count(arrays, r"blocks\.(\d+)\."), arrays["blocks.0.mlp.fc1.weight"].shape[0] / width
    if places == "pos_embed":
        size = _positions_size(arrays[places].shape[1] - 1, patch, source)
        return VitSpec(size, patch, width, depth, _heads(source, width), ratio)
    rows, heads = arrays[places].shape
    size = _table_size(places, rows - _TO_CLASS_TOKEN, patch, source)
    spec = VitSpec(size, patch, width, depth, heads, ratio, relative=True)
    _check_tables(arrays, spec, source.init)
    return spec


def guessed(spec: EncoderSpec, source: ModelSource) -> list[str]:
    """Say what :func:`sizes` assumed in ``spec`` because neither shapes nor ``source`` tell it, each with its key."""
    found = []
    if isinstance(spec, VitSpec) and not spec.relative and source.heads is None:
        found.append(f"{spec.heads} heads as of the published ViT that is {spec.width} wide (model.heads)")
    if spec.image_size != source.image_size:
        found.append(f"images of {spec.image_size[0]} x {spec.image_size[1]} pixels (model.image_size)")
    return found


def check_sizes(arrays: Arrays, spec: EncoderSpec, origin: str) -> None:
    """Raise CheckpointError, which begins with ``origin``, if positions in ``arrays`` are not those of ``spec``.

    All other shapes are compared when the arrays are copied; positions may be resampled before.
    """
    positions = arrays.get("pos_embed")
    if positions is not None and positions.shape[1:2] != (1 + spec.patches,):
        down, across = spec.grid
        raise CheckpointError(
            f"{origin}: pos_embed is {positions.shape}, and the file says that it has {down} x {across} patches; "
            "it was altered or damaged"
        )
    _check_tables(arrays, spec, origin)


def at_size(spec: EncoderSpec, source: ModelSource) -> EncoderSpec:
    """``spec`` at the image size that is asked for; what ``source`` says about the other sizes must be true.

    A Swin's window is ``source.window``; else it stays at its own image size, and elsewhere is the shorter side of the
    last stage, as where a configuration says nothing.
    """
    swin = isinstance(spec, SwinSpec)
    for key in ("width", "depth", "heads"):
        wanted, found = getattr(source, key), getattr(spec, "depths" if swin and key == "depth" else key)
        if wanted is not None and wanted != found:
            raise CheckpointError(f"model.{key} {wanted}: the weights in {source.init} have {key} {found}")
    size = source.image_size or spec.image_size
    if size[0] % spec.stride or size[1] % spec.stride:
        what = "stride" if swin else "patch size"
        raise ConfigError(f"model.image_size {list(size)}: not a multiple of the weights' {what} {spec.stride}")
    moved = replace(spec, image_size=size)
    if not isinstance(moved, SwinSpec):
        if source.window is not None:
            raise ConfigError(f"model.window {source.window}: the weights in {source.init} have no windows")
        return moved
    return replace(moved, window=source.window or (moved.window if moved == spec else min(moved.grid)))


def describe(spec: EncoderSpec) -> dict[str, Any]:
    """``spec`` as plain JSON, from which :func:`described` rebuilds it."""
    family = "swin" if isinstance(spec, SwinSpec) else "vit"
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(spec).items()}
    return {"family": family, **values}


def described(encoder: Mapping[str, Any]) -> EncoderSpec:
    """What :func:`describe` gave, in this version or an older one."""
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in encoder.items()}
    return SwinSpec(**values) if values.pop("family") == "swin" else VitSpec(**values)


def _swin(arrays: Arrays, source: ModelSource, width: int, patch: int) -> SwinSpec:
    stages = range(_count(arrays, r"layers\.(\d+)\."))
    depths = tuple(_count(arrays, rf"layers\.{stage}\.blocks\.(\d+)\.") for stage in stages)
    tables = [f"layers.{stage}.blocks.0.attn.{TABLE}" for stage in stages]
    missing = [name for name in tables if name not in arrays]
    if missing:
        raise CheckpointError(f"{source.init}: not a Swin with timm's names: {missing[0]} missing")
    heads = tuple(arrays[name].shape[1] for name in tables)
    window = _side(len(arrays[tables[0]]))
    if window is None:
        raise CheckpointError(f"{source.init}: its windows are not square, and only square ones load from a bare file")
    ratio = arrays["layers.0.blocks.0.mlp.fc1.weight"].shape[0] / width
    spec = SwinSpec((0, 0), patch, width, depths, heads, window, ratio)
    spec = replace(spec, image_size=_table_size(tables[-1], len(arrays[tables[-1]]), spec.stride, source))
    _check_tables(arrays, spec, source.init)
    return spec


def _table_size(name: str, rows: int, stride: int, source: ModelSource) -> tuple[int, int]:
    """Height and width in pixels of the tokens whose relative positions the ``rows`` of table ``name`` are."""
    size = source.image_size or (0, 0)
    if (2 * (size[0] // stride) - 1) * (2 * (size[1] // stride) - 1) == rows:
        return size
    side = _side(rows)
    if side is None:
        raise CheckpointError(
            f"{source.init}: the {rows} relative positions of {name} are those of no square; "
            f"give the height and width as model.image_size {_WITH_SETTINGS}"
        )
    return side * stride, side * stride


def _positions_size(patches: int, patch: int, source: ModelSource) -> tuple[int, int]:
    size = source.image_size or (0, 0)
    if (size[0] // patch) * (size[1] // patch) == patches:
        return size
    side = math.isqrt(patches)
    if side * side != patches:
        raise CheckpointError(
            f"{source.init}: its {patches} patches make no square; give the height and width as model.image_size "
            f"{_WITH_SETTINGS}"
        )
    return side * patch, side * patch


def _check_tables(arrays: Arrays, spec: EncoderSpec, origin: str) -> None:
    """Raise CheckpointError where a table is not of the grid or the windows of ``spec``."""
    rest = 0 if isinstance(spec, SwinSpec) else _TO_CLASS_TOKEN
    for name in arrays:
        if name.endswith(TABLE):
            height, width = window_of(name, spec)
            rows = (2 * height - 1) * (2 * width - 1) + rest
            if len(arrays[name]) != rows:
                raise CheckpointError(
                    f"{origin}: {name} has {len(arrays[name])} rows, where {height} x {width} tokens have {rows}"
                )


def _heads(source: ModelSource, width: int) -> int:
    heads = source.heads or {preset["width"]: preset["heads"] for preset in VIT_PRESETS.values()}.get(width)
    if not isinstance(heads, int):
        raise CheckpointError(
            f"{source.init}: no published ViT is {width} wide; give the number of heads as model.heads {_WITH_SETTINGS}"
        )
    return heads


def _count(names: Iterable[str], pattern: str) -> int:
    """One more than the highest number that ``pattern`` finds at the beginning of a name."""
    return 1 + max((int(found[1]) for name in names if (found := re.match(pattern, name))), default=-1)


def _side(rows: int) -> int | None:
    """Tokens on the side of the square with (2 side - 1)^2 relative positions."""
    root = math.isqrt(max(rows, 0))
    return (root + 1) // 2 if root * root == rows and root % 2 else None


_VIT = ("cls_token", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
_SWIN = ("patch_embed.proj.weight", "layers.0.blocks.0.mlp.fc1.weight")
