"""The frame of an image on a canvas: masks and matrices by which UperNet's maps end with the image.

A convolution meets zeros beyond the image, as it would beyond a map, and the matrices that resize maps and take means
are those of the image's own sides. They are inputs of the graph, so that it is the same for all images on the canvas
(:mod:`ehm.backends.mindspore.models.canvas`).

Shapes: an image of H x W pixels on a canvas of at least as many, whose levels are maps of h_i x w_i places.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor, nn
from numpy.typing import NDArray

from ehm.backends.mindspore.models.maps import multiply_sides
from ehm.data.bilinear import interpolate_side
from ehm.models.pyramid import PARTS, STRIDES, compute_shares

__all__ = ["NO_FRAME", "build_frame", "group_frame", "keep_inside", "resize_map"]

_LEVELS = len(STRIDES)
_COUNTS = (_LEVELS - 1, _LEVELS - 1, len(PARTS), len(PARTS), 1)
"""Pairs of matrices in each part of a frame after the masks."""
NO_FRAME: tuple[tuple[Any, ...], ...] = ((None,) * _LEVELS, *((None,) * count for count in _COUNTS))
"""The frame of images that fill their maps.

Its parts are the masks of the levels, and pairs of matrices for the sides of maps: from each level to the next finer
one, from each to the finest, to the means of pyramid pooling, back from them, and from the finest level to pixels.
"""

Size = tuple[int, int]


def build_frame(size: Size, canvas: Size) -> list[Tensor]:
    """Return the arrays of the frame of an image of ``size`` = (H, W) on a ``canvas``, for :func:`group_frame`.

    All are multiples of the widest stride.
    """
    arrays = []
    for stride in STRIDES:
        mask = np.zeros((1, 1, canvas[0] // stride, canvas[1] // stride), np.float32)
        mask[..., : size[0] // stride, : size[1] // stride] = 1
        arrays.append(mask)
    for fine in (STRIDES[:-1], STRIDES[:1] * (_LEVELS - 1)):
        for stride, wanted in zip(STRIDES[1:], fine, strict=True):
            for side, limit in zip(size, canvas, strict=True):
                weights = interpolate_side(side // stride, side // wanted)
                arrays.append(_pad(weights, limit // wanted, limit // stride))
    widest = STRIDES[-1]
    for parts in PARTS:
        for side, limit in zip(size, canvas, strict=True):
            arrays.append(_pad(compute_shares(side // widest, parts), parts, limit // widest))
    for parts in PARTS:
        for side, limit in zip(size, canvas, strict=True):
            arrays.append(_pad(interpolate_side(parts, side // widest), limit // widest, parts))
    for side, limit in zip(size, canvas, strict=True):
        arrays.append(_pad(interpolate_side(side // STRIDES[0], side), limit, limit // STRIDES[0]))
    return [Tensor(array) for array in arrays]


def group_frame(arrays: Any) -> Any:
    """Group the arrays of :func:`build_frame` as :data:`NO_FRAME` describes; a part of a graph."""
    parts = [arrays[:_LEVELS]]
    first = _LEVELS
    for count in _COUNTS:
        pairs = []
        for index in range(count):
            pairs.append((arrays[first + 2 * index], arrays[first + 2 * index + 1]))
        parts.append(pairs)
        first = first + 2 * count
    return parts


def resize_map(cell: nn.Cell, x: Tensor, matrices: Any) -> Tensor:
    """Resize a map by ``cell``, or by a pair of matrices of a frame."""
    return cell(x) if matrices is None else multiply_sides(x, matrices[0], matrices[1])


def keep_inside(x: Tensor, mask: Any) -> Tensor:
    """Set a map to zero beyond the image, if there is a ``mask``."""
    return x if mask is None else x * mask


def _pad(weights: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    """Enlarge a matrix with zeros to ``rows`` x ``columns``."""
    padded = np.zeros((rows, columns), np.float32)
    padded[: weights.shape[0], : weights.shape[1]] = weights
    return padded
