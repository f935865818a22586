"""Masks that do not look at the image: random (MAE), grid, and blocks (BEiT). Each hides exactly round(ratio * N).

Shapes: B images, a grid of h x w patches, N = h * w in row-major order. True = masked.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["block_mask", "grid_mask", "masked_count", "random_mask"]

_MIN_BLOCK = 16  # patches; BEiT's min_num_patches
_MIN_ASPECT = 0.3  # BEiT's min_aspect; the largest is its inverse
_ATTEMPTS = 10  # at one block, as in BEiT


def masked_count(ratio: float, patches: int) -> int:
    """round(ratio * N), the number of masked patches; ValueError where ``ratio`` is not in (0, 1)."""
    if not 0 < ratio < 1:
        raise ValueError(f"ratio must be in (0, 1), not {ratio}")
    return round(ratio * patches)


def random_mask(batch: int, grid: tuple[int, int], ratio: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Each set of patches is as likely as any other (MAE): (B, N)."""
    count = _check(batch, grid, ratio)
    return _lowest(rng.random((batch, grid[0] * grid[1])), count)


def grid_mask(batch: int, grid: tuple[int, int], ratio: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Keep a regular lattice of visible patches: (B, N).

    Of several lattices, every a-th row and b-th column, the one whose share of visible patches is nearest to 1 - ratio is
    taken, at a random phase in each image; patches drawn at random bring it to the exact count.
    """
    count = _check(batch, grid, ratio)
    height, width = grid
    steps = [(a, b) for a in range(1, height + 1) for b in range(1, width + 1)]
    a, b = min(steps, key=lambda step: (abs(1 / (step[0] * step[1]) - (1 - ratio)), abs(step[0] - step[1])))
    phase = rng.integers(0, (a, b), (batch, 2))
    rows = (np.arange(height) + phase[:, :1]) % a == 0
    columns = (np.arange(width) + phase[:, 1:]) % b == 0
    lattice = (rows[:, :, None] & columns[:, None, :]).reshape(batch, -1)
    return _lowest(rng.random(lattice.shape) + lattice, count)


def block_mask(batch: int, grid: tuple[int, int], ratio: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Hide rectangles until the count is reached, by BEiT's rule (Bao et al., 2021, Algorithm 1): (B, N).

    A block covers 16 patches or more, up to what is still missing, at a log-uniform aspect ratio in [0.3, 1 / 0.3]; one
    that would hide nothing new is drawn again, up to ten times. BEiT stops below its target where no block fits;
    here patches drawn at random, beside hidden ones first, bring the mask to the exact count.
    """
    count = _check(batch, grid, ratio)
    mask = np.zeros((batch, *grid), np.bool_)
    for image in mask:
        missing = count
        while missing > 0:
            added = _add_block(image, missing, rng)
            if not added:
                break
            missing -= added
    # blocks never hide more than is missing: what is left is filled in from their borders
    near = np.zeros_like(mask)
    near[:, 1:] |= mask[:, :-1]
    near[:, :-1] |= mask[:, 1:]
    near[:, :, 1:] |= mask[:, :, :-1]
    near[:, :, :-1] |= mask[:, :, 1:]
    score = rng.random(mask.shape) - near - 2.0 * mask
    return _lowest(score.reshape(batch, -1), count)


def _add_block(mask: NDArray[np.bool_], missing: int, rng: np.random.Generator) -> int:
    """Hide one more block of at most ``missing`` new patches; their number, 0 where no attempt succeeded."""
    height, width = mask.shape
    for _ in range(_ATTEMPTS):
        area = rng.uniform(min(_MIN_BLOCK, missing), missing)
        aspect = math.exp(rng.uniform(math.log(_MIN_ASPECT), -math.log(_MIN_ASPECT)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < h < height and 0 < w < width):
            continue
        top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        block = mask[top : top + h, left : left + w]
        added = int(block.size - block.sum())
        if 0 < added <= missing:
            block[:] = True
            return added
    return 0


def _check(batch: int, grid: tuple[int, int], ratio: float) -> int:
    if batch < 1:
        raise ValueError(f"batch must be at least 1, not {batch}")
    if len(grid) != 2 or min(grid) < 1:
        raise ValueError(f"grid must be (height, width) in patches, not {grid}")
    return masked_count(ratio, grid[0] * grid[1])


def _lowest(score: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """Mask the ``count`` patches of the lowest score in each image."""
    mask = np.zeros(score.shape, np.bool_)
    np.put_along_axis(mask, np.argsort(score, axis=1, kind="stable")[:, :count], True, axis=1)
    return mask
