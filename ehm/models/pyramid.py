"""The pyramid of features under dense prediction, as numbers that all backends and exported graphs share.

Shapes: a side of h places that is divided into p parts, which may share a place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ehm.config.encoders import EncoderSpec, SwinSpec
from ehm.errors import ConfigError

__all__ = [
    "LAYERS_A_DOUBLING",
    "PARTS",
    "STRIDES",
    "Resizing",
    "compute_shares",
    "find_taps",
    "list_ends_of_quarters",
    "list_ends_of_thirds",
    "plan_resizing",
    "round_stride",
]

STRIDES = (4, 8, 16, 32)
"""Pixels from one place of a level to the next, from the finest level to the coarsest."""
PARTS = (1, 2, 3, 6)
"""Parts down and across whose means pyramid pooling takes."""
LAYERS_A_DOUBLING = 3
"""Layers of a neck from one transposed convolution to the next: itself, a batch norm and a GELU."""


@dataclass(frozen=True)
class Resizing:
    """The way from a ViT's map to a level: its sides are doubled ``doublings`` times, or divided by ``shrinking``."""

    doublings: int
    shrinking: int


def list_ends_of_quarters(depth: int) -> tuple[int, ...]:
    """Return the last block of each quarter, as in detection with MAE and in the paper (V-B): 2, 5, 8, 11 of 12."""
    lengths = (depth // 4, depth * 2 // 4, depth * 3 // 4, depth)
    return tuple(max(length - 1, 0) for length in lengths)  # a shallow encoder may have none in a quarter


def list_ends_of_thirds(depth: int) -> tuple[int, ...]:
    """Return the last block of each third and the middle one, as BEiT and MAE segment: 3, 5, 7, 11 of 12."""
    lengths = (depth // 3, depth // 2, depth * 2 // 3, depth)
    return tuple(max(length - 1, 0) for length in lengths)


def find_taps(spec: EncoderSpec, blocks: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return what the levels of a segmenter's pyramid are taken from, from the finest to the coarsest.

    For a Swin they are stages, and for a ViT the ``blocks`` that its configuration names, or else
    :func:`list_ends_of_thirds`.
    Raises ConfigError if the encoder has no such blocks, or no maps of these strides.
    """
    if isinstance(spec, SwinSpec):
        strides = [spec.patch_size << stage for stage in range(len(spec.depths))]
        if not set(STRIDES) <= set(strides):
            raise ConfigError(f"model: a Swin with maps at strides {strides}, not 4, 8, 16, 32")
        return tuple(strides.index(stride) for stride in STRIDES)
    taps = blocks or list_ends_of_thirds(spec.depth)
    if min(taps) < 0 or max(taps) >= spec.depth:
        raise ConfigError(f"model: maps after blocks {list(taps)}; the encoder has {spec.depth}")
    return taps


def round_stride(patch_size: int) -> int:
    """Return the power of two nearest to a ViT's patch, to which its images are resized: 16 for patches of 14."""
    return int(2 ** round(math.log2(patch_size)))


def plan_resizing(stride: int, wanted: int) -> Resizing:
    """Return the way from a map of ``stride`` to the stride ``wanted``, powers of two."""
    if wanted > stride:
        return Resizing(0, wanted // stride)
    return Resizing(int(math.log2(stride // wanted)), 1)


def compute_shares(side: int, parts: int) -> NDArray[np.float32]:
    """Return the weights (parts, side) of a side's places in the mean of each part, as in adaptive average pooling."""
    part = np.arange(parts)[:, None]
    place = np.arange(side)
    inside = (place >= part * side // parts) & (place * parts < (part + 1) * side)
    return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)
