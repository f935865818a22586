"""Evolved Part Masking (EPM; Feng and Zhang, CVPR 2023), the conference version of the paper: parts found by EM.

There is no tree: attention is clustered anew in every step, into fewer parts as training goes on, and the order in
which parts are hidden is mixed with that of a lattice, less and less. What this paper's text says of it is little
(section II: it combines "grid-like" and "large block" masks); figures are those of the published code
(ZhanzhouFeng/Evolved-Part-Masking).

Shapes: B images, a grid of h x w patches, N = h * w in row-major order, K parts.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.masking._parallel import over_batch
from ehm.masking.similarity import as_similarity
from ehm.masking.static import masked_count
from ehm.masking.streams import RandomNumbers

__all__ = ["em_parts", "part_count", "part_mask"]

MOST, FEWEST = 40, 10  # parts at the start and at the end of training, as published
STEPS = 15  # of EM, as published
CONCENTRATION = 400
"""Of a part around its centre. Published is 40 for sums over the 144 heads of a ViT-B, whose columns are about 10 long
(of even attention 144 / 197 * 14); here they have length 1."""
TINY, LEAST = np.float32(1e-30), np.float32(-50)
"""Length of a row without direction; logarithm that no share falls below, or denormal numbers triple the time."""


def part_count(progress: float, patches: int) -> int:
    """How many parts to look for: from 40 at ``progress`` 0 evenly down to 10 at 1, at most ``patches``.

    Published code draws from this number and the two above it, anew for each batch; here it is the number. ValueError
    where ``progress`` is not in [0, 1].
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress must be in [0, 1], not {progress}")
    return min(patches, int(round(FEWEST + (MOST - FEWEST) * (1 - progress), 9)))  # 0.9 comes out a hair below 13


def em_parts(similarity: Any, parts: int, rng: RandomNumbers, threads: int | None = None) -> NDArray[np.int32]:
    """Cluster the patches by what they are similar to: (B, N, N) -> the part of each, 0 to ``parts`` - 1, (B, N).

    Fifteen steps of EM for a mixture of von Mises-Fisher distributions of one concentration (Banerjee et al., 2005): a
    patch is its row of the similarity, scaled to length 1. Parts may end up empty. Read differently from the published
    code, whose random centres let most parts starve: centres begin at as many patches drawn at random. It also clusters
    raw attention summed over all blocks; here similarities are whatever is given. Raises ValueError for what is not
    (B, N, N) with N >= 2 or not finite, and for ``parts`` outside 1 to N.
    """
    array = as_similarity(similarity)
    batch, n = array.shape[:2]
    if not 1 <= parts <= n:
        raise ValueError(f"parts must be from 1 to {n}, the number of patches, not {parts}")
    if not np.isfinite(array).all():
        raise ValueError("similarity must be finite, but holds infinity or NaN")
    first = rng.random((batch, n)).argsort(axis=1)[:, :parts]
    part = np.empty((batch, n), np.int32)
    over_batch(_em, array, first, part, work=n * n * parts, threads=threads)
    return part


def part_mask(
    part: NDArray[np.int32], grid: tuple[int, int], progress: float, ratio: float, rng: RandomNumbers
) -> NDArray[np.bool_]:
    """Hide parts in random order, mixed with the order of a lattice: (B, N) -> exactly round(ratio * N) masked, (B, N).

    Each part has a random number u, and each of the four places in a block of 2 x 2 patches a random number g; patches
    go by (1 - a) g + a u with a = sqrt(``progress``), equal ones in random order, as published (but there all images of
    a batch share g). So at progress 0 the mask is a lattice, and at 1 whole parts, the last of which is filled in
    part, at random. ``part`` holds numbers of 0 to N - 1. Raises ValueError where it is not of the ``grid``, and for
    ``progress`` outside [0, 1] or ``ratio`` outside (0, 1).
    """
    height, width = grid
    batch, n = part.shape
    if n != height * width:
        raise ValueError(f"part must be of the {height} x {width} patches of the grid, not of {n}")
    if not 0 <= progress <= 1:
        raise ValueError(f"progress must be in [0, 1], not {progress}")
    count = masked_count(ratio, n)
    numbers = rng.random((batch, 2 * n + 4))
    of_part, chance, lattice = numbers[:, :n], numbers[:, n : 2 * n], numbers[:, 2 * n :]
    place = (np.arange(height)[:, None] % 2 * 2 + np.arange(width) % 2).ravel()
    a = math.sqrt(progress)
    score = (1 - a) * lattice[:, place] + a * np.take_along_axis(of_part, part, axis=1)
    mask = np.zeros((batch, n), np.bool_)
    np.put_along_axis(mask, np.lexsort((chance, score))[:, :count], True, axis=1)
    return mask


def _em(similarity: NDArray[Any], first: NDArray[np.int64], part: NDArray[np.int32]) -> None:
    """Into ``part`` (B, N): the likeliest part of each patch; centres start at patches ``first`` (B, K)."""
    rows = _unit(similarity.astype(np.float32))
    centres = np.take_along_axis(rows, first[:, :, None], axis=1)  # (B, K, N)
    for _ in range(STEPS):
        share = CONCENTRATION * (rows @ centres.swapaxes(1, 2))  # of each part in each patch, (B, N, K)
        share = np.exp(np.maximum(share - share.max(axis=2, keepdims=True), LEAST))
        share /= share.sum(axis=2, keepdims=True)
        centres = _unit(share.swapaxes(1, 2) @ rows)
    part[:] = (rows @ centres.swapaxes(1, 2)).argmax(axis=2)


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """``rows`` (B, R, N) scaled to length 1; those without a direction stay zero."""
    scaled: NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=2, keepdims=True), TINY)
    return scaled
