"""Evolved Part Masking (EPM; Feng and Zhang, CVPR 2023), the conference version of the paper: parts found by EM.

There is no tree: attention is clustered anew in every step, into fewer parts as training goes on, and the order in
which parts are hidden is mixed with that of a lattice, less and less. The paper says little about it (section II: it
combines "grid-like" and "large block" masks), so the numbers are those of the published code
(ZhanzhouFeng/Evolved-Part-Masking).

Shapes: B images, a grid of h x w patches, N = h * w in row-major order, K parts.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.masking._parallel import run_over_batch
from ehm.masking.similarity import convert_similarity
from ehm.masking.static import count_masked
from ehm.masking.streams import RandomNumbers

__all__ = ["em_parts", "part_count", "part_mask"]

MOST_PARTS = 40
"""Parts at the start of training, as published."""
FEWEST_PARTS = 10
"""Parts at the end of training, as published."""
EM_STEPS = 15
"""Steps of EM, as published."""
CONCENTRATION = 400
"""Concentration of a part around its centre. Published is 40 for sums over the 144 heads of a ViT-B, whose columns are
about 10 long (with even attention 144 / 197 * 14); here they have length 1."""
SHORTEST_ROW = np.float32(1e-30)
"""Length below which a row has no direction."""
LEAST_LOGARITHM = np.float32(-50)
"""Logarithm that no share falls below: denormal numbers would triple the time."""


def part_count(progress: float, patches: int) -> int:
    """Return the number of parts to look for: from 40 at ``progress`` 0 evenly down to 10 at 1, at most ``patches``.

    The published code draws from this number and the two above it, anew for each batch; here it is fixed. Raises
    ValueError if ``progress`` is not in [0, 1].
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress must be in [0, 1], not {progress}")
    exact = FEWEST_PARTS + (MOST_PARTS - FEWEST_PARTS) * (1 - progress)
    # Rounded before it is cut off: progress 0.9 comes out a hair below 13.
    return min(patches, int(round(exact, 9)))


def em_parts(similarity: Any, parts: int, rng: RandomNumbers, threads: int | None = None) -> NDArray[np.int32]:
    """Cluster the patches by their similarity to all others: (B, N, N) -> the part of each, 0 to ``parts`` - 1, (B, N).

    Fifteen steps of EM for a mixture of von Mises-Fisher distributions of one concentration (Banerjee et al., 2005): a
    patch is its row of the similarity, scaled to length 1. Parts may end up empty. Two things differ from the published
    code: its random centres let most parts starve, so here centres begin at patches drawn at random; and it clusters
    raw attention summed over all blocks, here any similarity can be given. Raises ValueError if ``similarity`` is not
    (B, N, N) with N >= 2 or not finite, or ``parts`` not from 1 to N.
    """
    array = convert_similarity(similarity)
    batch, n = array.shape[:2]
    if not 1 <= parts <= n:
        raise ValueError(f"parts must be from 1 to {n}, the number of patches, not {parts}")
    if not np.isfinite(array).all():
        raise ValueError("similarity must be finite, but holds infinity or NaN")
    first = rng.random((batch, n)).argsort(axis=1)[:, :parts]
    part = np.empty((batch, n), np.int32)
    run_over_batch(_run_em, array, first, part, entries=n * n * parts, threads=threads)
    return part


def part_mask(
    part: NDArray[np.int32], grid: tuple[int, int], progress: float, ratio: float, rng: RandomNumbers
) -> NDArray[np.bool_]:
    """Hide parts in random order, mixed with the order of a lattice: (B, N) -> exactly round(ratio * N) masked, (B, N).

    Each part has a random number u, and each of the four places in a block of 2 x 2 patches a random number g; patches
    go by (1 - a) g + a u with a = sqrt(``progress``), equal ones in random order, as published (but there all images of
    a batch share g). So at progress 0 the mask is a lattice, and at 1 it is whole parts, the last of which is filled
    partly, at random. ``part`` holds numbers from 0 to N - 1. Raises ValueError if it does not fit the ``grid``,
    ``progress`` is not in [0, 1] or ``ratio`` not in (0, 1).
    """
    height, width = grid
    batch, n = part.shape
    if n != height * width:
        raise ValueError(f"part must be of the {height} x {width} patches of the grid, not of {n}")
    if not 0 <= progress <= 1:
        raise ValueError(f"progress must be in [0, 1], not {progress}")
    count = count_masked(ratio, n)
    numbers = rng.random((batch, 2 * n + 4))
    u = numbers[:, :n]  # of parts, whose numbers go up to N - 1
    chance = numbers[:, n : 2 * n]  # of patches, to break ties
    g = numbers[:, 2 * n :]  # of places in a block
    place = (np.arange(height)[:, None] % 2 * 2 + np.arange(width) % 2).ravel()
    a = math.sqrt(progress)
    score = (1 - a) * g[:, place] + a * np.take_along_axis(u, part, axis=1)
    mask = np.zeros((batch, n), np.bool_)
    np.put_along_axis(mask, np.lexsort((chance, score))[:, :count], True, axis=1)
    return mask


def _run_em(similarity: NDArray[Any], first: NDArray[np.int64], part: NDArray[np.int32]) -> None:
    """Write the likeliest part of each patch into ``part`` (B, N); centres start at patches ``first`` (B, K)."""
    rows = _scale_rows(similarity.astype(np.float32))
    centres = np.take_along_axis(rows, first[:, :, None], axis=1)  # (B, K, N)
    for _ in range(EM_STEPS):
        share = CONCENTRATION * (rows @ centres.swapaxes(1, 2))  # of each part in each patch, (B, N, K)
        share = np.exp(np.maximum(share - share.max(axis=2, keepdims=True), LEAST_LOGARITHM))
        share /= share.sum(axis=2, keepdims=True)
        centres = _scale_rows(share.swapaxes(1, 2) @ rows)
    part[:] = (rows @ centres.swapaxes(1, 2)).argmax(axis=2)


def _scale_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale ``rows`` (B, R, N) to length 1; rows without a direction stay zero."""
    scaled: NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=2, keepdims=True), SHORTEST_ROW)
    return scaled
