"""Averages over processes: gradients travel between them in a few large pieces.

A collective for each of a ViT's 250 gradients would be launched 250 times a step, and none of them is large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from mindspore import Tensor, ops

__all__ = ["build_averaging", "divide_into_pieces"]

_PIECE_BYTES = 64 * 2**20
"""Bytes of gradients that travel together: a ViT-B has six such pieces, and a copy of one costs little memory."""
_FLOAT_BYTES = 4
_APPLY_TO_EACH = ops.HyperMap()


def divide_into_pieces(shapes: Sequence[tuple[int, ...]], limit: int) -> list[slice]:
    """Divide float32 arrays of these ``shapes`` into runs of at most ``limit`` bytes, or of one array."""
    pieces = []
    start = 0
    size = 0
    for index, shape in enumerate(shapes):
        own = _FLOAT_BYTES * math.prod(shape)
        if index > start and size + own > limit:
            pieces.append(slice(start, index))
            start = index
            size = 0
        size += own
    pieces.append(slice(start, len(shapes)))
    return pieces


def build_averaging(shapes: Sequence[tuple[int, ...]], processes: int) -> Callable[..., tuple[Tensor, ...]]:
    """Return a function that averages float32 arrays of these ``shapes`` over all ``processes``, piece by piece."""
    pieces = [(piece.start, piece.stop) for piece in divide_into_pieces(shapes, _PIECE_BYTES)]
    counts = [math.prod(shape) for shape in shapes]
    sum_over_processes = ops.AllReduce()
    share = 1 / processes

    def average(arrays: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        averaged: tuple[Any, ...] = ()
        for start, stop in pieces:
            own = arrays[start:stop]
            total = sum_over_processes(ops.cat(_APPLY_TO_EACH(_flatten, own))) * share
            averaged += _APPLY_TO_EACH(_restore_shape, ops.split(total, counts[start:stop]), own)
        return averaged

    return average


def _flatten(array: Tensor) -> Tensor:
    return array.reshape((-1,))


def _restore_shape(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(like.shape)
