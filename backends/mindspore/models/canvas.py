"""Images of any size on canvases of few sizes, so that few graphs are compiled, and numbers as without a canvas.

A graph takes arrays of one shape. An image is put into the first places of a larger one, and what a network computes
there is made to depend on the image alone: attention gives no weight to tokens beyond it, positions are those of the
image's own grid, and means count its own places. What lies beyond is computed too, and dropped.

Shapes: B images of H x W pixels in C channels, N patches of p x p pixels, of which the encoder was built for n, M >= N
places of a canvas, P tokens before the patches, L = P + M, heads of d features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from mindspore import Tensor
from numpy.typing import NDArray

from ehm.backends.mindspore.models.rotary import compute_rotations
from ehm.config.encoders import EncoderSpec, VitSpec
from ehm.models.resample import compute_bicubic_weights

__all__ = ["CanvasTokens", "can_take_any_size", "enlarge_side", "lay_out_patches", "place_grid", "place_row"]

_FORBIDDEN = -1e30
"""Score of a token that gets no attention: its exponential is 0."""


class CanvasTokens(NamedTuple):
    """Images on a canvas, as a ViT takes them; the fields after ``patches`` depend on sizes alone."""

    patches: NDArray[np.float32]
    """The pixels of patches, (B, M, C * p * p), in the order of a convolution's weights."""
    resampling: Tensor | None
    """Weights (M, n) of the encoder's positions in those of the patches; None without added positions."""
    rotations: Tensor | None
    """Sines and cosines (M, 2 * d) of rotary positions, if there are any."""
    bias: Tensor
    """Added to the scores of attention, (1, 1, 1, L): 0, or beyond the image a number far below all scores."""
    inside: Tensor
    """1 for the patches of the image, and 0 beyond: (M, 1)."""


def can_take_any_size(spec: EncoderSpec) -> bool:
    """Return whether an encoder of ``spec`` takes images of any size: a ViT whose positions are added or rotary."""
    return isinstance(spec, VitSpec) and not spec.relative


def enlarge_side(side: int, base: int = 1) -> int:
    """Return the side of the smallest canvas for ``side`` places: ``base`` times 2**k or 1.5 * 2**k, rounded up.

    A side grows by less than a half, and from one size to its double there are two canvases.
    """
    doubled = float(base)
    while doubled / 2 >= side:
        doubled /= 2
    while doubled < side:
        doubled *= 2
    # now it is the smallest one of the first kind
    canvas = 0.75 * doubled if side <= 0.75 * doubled else doubled
    return math.ceil(canvas)


def place_row(count: int) -> NDArray[np.int64]:
    """Return the places of ``count`` patches on a canvas that has no sides: one after the other."""
    return np.arange(count)


def place_grid(grid: tuple[int, int], canvas: tuple[int, int]) -> NDArray[np.int64]:
    """Return the places of the patches of a ``grid`` = (h, w) in the upper left corner of a larger ``canvas``."""
    rows = np.arange(grid[0])[:, None] * canvas[1]
    return (rows + np.arange(grid[1])).ravel()


def lay_out_patches(pixels: NDArray[np.float32], spec: VitSpec, places: NDArray[np.int64], length: int) -> CanvasTokens:
    """Lay normalised ``pixels`` (B, C, H, W) out on a canvas of ``length`` places, their patches at ``places``."""
    batch, channels, height, width = pixels.shape
    side = spec.patch_size
    grid = (height // side, width // side)
    cut = pixels.reshape((batch, channels, grid[0], side, grid[1], side)).transpose((0, 2, 4, 1, 3, 5))
    patches = np.zeros((batch, length, channels * side * side), np.float32)
    patches[:, places] = cut.reshape((batch, len(places), -1))
    resampling = None
    if spec.form.added_positions:
        weights = np.kron(
            compute_bicubic_weights(grid[0], spec.grid[0]), compute_bicubic_weights(grid[1], spec.grid[1])
        )
        resampling = _spread(weights, places, length)
    rotations = None
    if spec.form.rotary.kind is not None:
        rotations = _spread(compute_rotations(spec.form.rotary, grid, spec.width // spec.heads), places, length)
    inside = np.zeros((length, 1), np.float32)
    inside[places] = 1
    prefix = spec.form.prefix_tokens
    bias = np.zeros((1, 1, 1, prefix + length), np.float32)
    bias[..., prefix:] = np.where(inside[:, 0] > 0, 0, _FORBIDDEN)
    return CanvasTokens(patches, resampling, rotations, Tensor(bias), Tensor(inside))


def _spread(rows: NDArray[Any], places: Sequence[int] | NDArray[np.int64], length: int) -> Tensor:
    """Put ``rows`` at their ``places`` among zeros, ``length`` rows in all."""
    spread = np.zeros((length, rows.shape[1]), np.float32)
    spread[places] = rows
    return Tensor(spread)
