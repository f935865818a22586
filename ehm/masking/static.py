"""Masks that do not look at the image: random (MAE), grid, blocks (BEiT, I-JEPA). Each hides exactly round(ratio * N).

Shapes: B images, a grid of h x w patches, N = h * w in row-major order. True = masked.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.masking.streams import RandomNumbers

__all__ = [
    "block_mask",
    "count_masked",
    "grid_mask",
    "large_block_mask",
    "mask_lowest",
    "multi_block_mask",
    "random_mask",
]

MIN_BLOCK = 16
"""Patches of a block, at least (BEiT's ``min_num_patches``)."""
MIN_ASPECT = 0.3
"""Smallest aspect ratio of a block (BEiT's ``min_aspect``); the largest is its inverse."""
ATTEMPTS = 10
"""Attempts at one block, as in BEiT."""
TARGETS = 4
"""Number of target blocks of an image (I-JEPA's ``num_pred_masks``)."""
TARGET_SCALE = (0.15, 0.2)
"""Share of the patches in a target block (I-JEPA's ``pred_mask_scale``)."""
TARGET_ASPECT = (0.75, 1.5)
"""Height of a target block over its width (I-JEPA's ``aspect_ratio``)."""
CONTEXT_SCALE = (0.85, 1.0)
"""Share of the patches in the context block (I-JEPA's ``enc_mask_scale``), which is as high as it is wide."""


def count_masked(ratio: float, patches: int) -> int:
    """Return the number of masked patches, round(ratio * N); raises ValueError if ``ratio`` is not in (0, 1)."""
    if not 0 < ratio < 1:
        raise ValueError(f"ratio must be in (0, 1), not {ratio}")
    return round(ratio * patches)


def random_mask(batch: int, grid: tuple[int, int], ratio: float, rng: RandomNumbers) -> NDArray[np.bool_]:
    """Hide round(ratio * N) patches, each set of them as likely as any other (MAE): (B, N)."""
    count = _check_arguments(batch, grid, ratio)
    return mask_lowest(rng.random((batch, grid[0] * grid[1])), count)


def grid_mask(batch: int, grid: tuple[int, int], ratio: float, rng: RandomNumbers) -> NDArray[np.bool_]:
    """Keep a regular lattice of visible patches (MAE's grid-wise sampling, the paper's "grid-like", Table III): (B, N).

    The lattice is every a-th row and b-th column, as near to the share 1 - ratio as can be, at a random phase in each
    image; below a ratio of a half the lattice is hidden and the rest kept. Patches drawn at random bring it to the
    exact count. At 0.75 every second row and column stays.
    """
    count = _check_arguments(batch, grid, ratio)
    height, width = grid
    row_step, column_step = _choose_lattice(height, width, min(ratio, 1 - ratio))
    phase = (rng.random((batch, 2)) * (row_step, column_step)).astype(int)
    rows = (np.arange(height) + phase[:, :1]) % row_step == 0
    columns = (np.arange(width) + phase[:, 1:]) % column_step == 0
    lattice = (rows[:, :, None] & columns[:, None, :]).reshape(batch, -1)
    kept = lattice if ratio >= 0.5 else ~lattice
    # Random numbers are below 1, so every patch that is kept comes after all others.
    return mask_lowest(rng.random(lattice.shape) + kept, count)


def block_mask(batch: int, grid: tuple[int, int], ratio: float, rng: RandomNumbers) -> NDArray[np.bool_]:
    """Hide rectangles until the count is reached, by BEiT's rule (Bao et al., 2021, Algorithm 1): (B, N).

    A block covers 16 patches or more, up to what is still missing, at a log-uniform aspect ratio in [0.3, 1 / 0.3]. One
    that does not fit, hides nothing new or more than is missing is drawn again, up to ten times; then BEiT stops below
    its target, and here patches drawn at random, beside hidden ones first, bring the mask to the exact count.
    """
    count = _check_arguments(batch, grid, ratio)
    height, width = grid
    mask = np.zeros((batch, height, width), np.bool_)
    row = np.arange(height)[:, None]
    column = np.arange(width)
    failures = np.zeros(batch, int)
    limit = math.log(1 / MIN_ASPECT)
    # Drawn first, because the number of attempts that follow depends on all images of the batch.
    chance = rng.random(mask.shape)
    while True:  # one attempt at a block in each image that is not finished
        missing = count - mask.sum(axis=(1, 2))
        unfinished = np.flatnonzero((missing > 0) & (failures < ATTEMPTS))
        if not len(unfinished):
            break
        # Finished images draw as well, so that the numbers of an image do not depend on the others.
        u = rng.random((batch, 4))[unfinished].T[:, :, None, None]
        missing = missing[unfinished, None, None]
        area = MIN_BLOCK + u[0] * (missing - MIN_BLOCK)
        aspect = np.exp(limit * (2 * u[1] - 1))
        h = np.rint(np.sqrt(area * aspect))
        w = np.rint(np.sqrt(area / aspect))
        top = np.floor(u[2] * (height - h + 1))
        left = np.floor(u[3] * (width - w + 1))
        block = (row >= top) & (row < top + h) & (column >= left) & (column < left + w)
        added = (block & ~mask[unfinished]).sum(axis=(1, 2), keepdims=True)
        fits = (h < height) & (w < width) & (added > 0) & (added <= missing)
        mask[unfinished] |= block & fits
        failures[unfinished] = np.where(fits.ravel(), 0, failures[unfinished] + 1)
    return _fill_mask(mask, count, chance)


def large_block_mask(batch: int, grid: tuple[int, int], ratio: float, rng: RandomNumbers) -> NDArray[np.bool_]:
    """Hide one rectangle, as large as the mask (the paper's "large block", Table III): (B, N).

    The paper says no more than "randomly large block masking"; read as one block of BEiT's kind for the whole count:
    its aspect ratio is log-uniform in [0.3, 1 / 0.3] as far as the grid has room, its place is uniform. What is missing
    to the count, less than one side, is drawn at random from the patches beside it.
    """
    count = _check_arguments(batch, grid, ratio)
    height, width = grid
    area = max(count, 1)
    shortest = math.ceil(area / width)
    low, high = np.clip([MIN_ASPECT, 1 / MIN_ASPECT], shortest**2 / area, height**2 / area)
    u = rng.random((batch, 3)).T[:, :, None, None]
    h = np.rint(np.sqrt(area * low * (high / low) ** u[0]))
    # A block higher than its area would have no width.
    h = h.clip(shortest, min(height, area))
    w = count // h
    top = np.floor(u[1] * (height - h + 1))
    left = np.floor(u[2] * (width - w + 1))
    row = np.arange(height)[:, None]
    column = np.arange(width)
    block = (row >= top) & (row < top + h) & (column >= left) & (column < left + w)
    return _fill_mask(block, count, rng.random(block.shape))


def multi_block_mask(batch: int, grid: tuple[int, int], ratio: float, rng: RandomNumbers) -> NDArray[np.bool_]:
    """Hide target blocks (I-JEPA, Assran et al., 2023, section 3) and what is missing to the count around them: (B, N).

    Four blocks of one size, each of 15 to 20 % of the patches at an aspect ratio of 0.75 to 1.5, lie anywhere and may
    overlap; a context block of 85 to 100 % lies anywhere too. If the targets are fewer than the count, patches outside
    of the context block are hidden, then those beside hidden ones, then others, in random order. If they are more, the
    last block gives up its last rows, and so on.
    """
    count = _check_arguments(batch, grid, ratio)
    height, width = grid
    u = rng.random((batch, 3))
    target_places = rng.random((batch, TARGETS, 2))
    context_place = rng.random((batch, 1, 2))
    chance = rng.random((batch, height, width))

    target_size = _choose_block_sizes(grid, u[:, 0], u[:, 1], TARGET_SCALE, TARGET_ASPECT)
    context_size = _choose_block_sizes(grid, u[:, 2], u[:, 2], CONTEXT_SCALE, (1, 1))
    targets = _place_blocks(grid, target_size, target_places)
    context = _place_blocks(grid, context_size, context_place)[:, 0]

    is_target = targets.any(axis=1)
    outside = ~context & ~is_target
    near = _find_neighbours(is_target | outside)
    row_by_row = np.arange(height * width).reshape(grid) / (height * width)
    # Random numbers and places in row order are below 1, so that each kind of patch comes after all of the kind before.
    score = TARGETS + 2 + chance
    score[near] -= 1
    score[outside] = TARGETS + chance[outside]
    # a patch of several blocks belongs to the first of them
    score = np.where(is_target, targets.argmax(axis=1) + row_by_row, score)
    return mask_lowest(score.reshape(batch, -1), count)


def mask_lowest(score: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """Mask the ``count`` patches of the lowest score in each image: (B, N) -> (B, N)."""
    mask = np.zeros(score.shape, np.bool_)
    np.put_along_axis(mask, np.argsort(score, axis=1, kind="stable")[:, :count], True, axis=1)
    return mask


def _choose_lattice(height: int, width: int, share: float) -> tuple[int, int]:
    """Choose the steps down and across whose lattice is nearest to ``share`` of the patches, the squarest of equals."""
    steps = [(down, across) for down in range(1, height + 1) for across in range(1, width + 1)]
    return min(steps, key=lambda step: (abs(1 / (step[0] * step[1]) - share), abs(step[0] - step[1])))


def _fill_mask(mask: NDArray[np.bool_], count: int, chance: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Add patches to ``mask`` (B, h, w), those beside it first, then by ``chance``, up to the exact count: (B, N)."""
    # Random numbers lie in [0, 1): masked patches come first, then those beside them, then the others.
    score = chance - _find_neighbours(mask) - 2.0 * mask
    return mask_lowest(score.reshape(len(mask), -1), count)


def _find_neighbours(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask of the patches beside those of ``mask`` (B, h, w), which may be some of them."""
    near = np.zeros_like(mask)
    near[:, 1:] |= mask[:, :-1]
    near[:, :-1] |= mask[:, 1:]
    near[:, :, 1:] |= mask[:, :, :-1]
    near[:, :, :-1] |= mask[:, :, 1:]
    return near


def _choose_block_sizes(
    grid: tuple[int, int],
    area_chance: NDArray[np.float64],
    aspect_chance: NDArray[np.float64],
    scale: tuple[float, float],
    aspects: tuple[float, float],
) -> NDArray[np.int64]:
    """Choose the height and width of a block for each image by I-JEPA's rule, from two random numbers (B,): (B, 2)."""
    height, width = grid
    area = np.floor(height * width * (scale[0] + area_chance * (scale[1] - scale[0])))
    aspect = aspects[0] + aspect_chance * (aspects[1] - aspects[0])
    # smaller than the grid on each side, as published, but not empty
    h = np.rint(np.sqrt(area * aspect)).clip(1, max(1, height - 1))
    w = np.rint(np.sqrt(area / aspect)).clip(1, max(1, width - 1))
    return np.stack([h, w], axis=1).astype(np.int64)


def _place_blocks(grid: tuple[int, int], size: NDArray[np.int64], places: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Place k blocks of ``size`` (B, 2) in each image, by random numbers ``places`` (B, k, 2): masks (B, k, h, w)."""
    corner = np.floor(places * (np.array(grid) - size + 1)[:, None])
    top = corner[:, :, 0, None, None]
    left = corner[:, :, 1, None, None]
    h = size[:, 0, None, None, None]
    w = size[:, 1, None, None, None]
    row = np.arange(grid[0])[:, None]
    column = np.arange(grid[1])
    return (row >= top) & (row < top + h) & (column >= left) & (column < left + w)


def _check_arguments(batch: int, grid: tuple[int, int], ratio: float) -> int:
    """Return the number of masked patches; raises ValueError if an argument is out of range."""
    if batch < 1:
        raise ValueError(f"batch must be at least 1, not {batch}")
    if len(grid) != 2 or min(grid) < 1:
        raise ValueError(f"grid must be (height, width) in patches, not {grid}")
    return count_masked(ratio, grid[0] * grid[1])
