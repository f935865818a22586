# mypy: disable-error-code="untyped-decorator"
"""Walks over the trees of a batch, compiled by numba: the parts at a level, and masks made of them.

Parents have higher numbers than their children, so that a loop from the last node down meets every parent first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ehm.masking._jit import kernel

__all__ = ["cut", "draw"]


@kernel
def cut(parent: NDArray[np.int32], level: NDArray[np.int32], limit: NDArray[np.int32], part: NDArray[np.int32]) -> None:
    """Highest node of level at most ``limit`` (B,) above each leaf, of (B, M) trees into ``part`` (B, N)."""
    nodes = parent.shape[1]
    leaves = part.shape[1]
    top = np.empty(nodes, np.int32)
    for b in range(parent.shape[0]):
        top[nodes - 1] = nodes - 1
        for v in range(nodes - 2, -1, -1):
            above = parent[b, v]
            top[v] = top[above] if level[b, above] <= limit[b] else v
        for v in range(leaves):
            part[b, v] = top[v]


@kernel
def draw(
    parent: NDArray[np.int32],
    level: NDArray[np.int32],
    size: NDArray[np.int32],
    limit: NDArray[np.int32],
    uniform: NDArray[np.float64],
    count: int,
    mask: NDArray[np.bool_],
) -> None:
    """Hide the first ``count`` leaves of the parts at ``limit`` (B,), walked depth first, into ``mask`` (B, N).

    ``uniform`` (B, M) numbers in [0, 1) shuffle the nodes: of two parts, or of two children, the one that comes first
    is walked first. Leaves are not listed: each node's place in the walk follows from its parent's.
    """
    nodes = parent.shape[1]
    leaves = mask.shape[1]
    order = np.empty(nodes, np.int64)
    place = np.empty(nodes, np.int32)
    sibling = np.empty(nodes, np.int32)
    for b in range(parent.shape[0]):
        for i in range(nodes):  # a shuffled order for every image (Durstenfeld, 1964), whatever the one before
            order[i], sibling[i] = i, 0
        for i in range(nodes - 1, 0, -1):
            j = int(uniform[b, i] * (i + 1))
            order[i], order[j] = order[j], order[i]
        walked = 0
        for node in order:
            above = parent[b, node]
            if above >= 0 and level[b, above] <= limit[b]:
                place[node] = sibling[above]  # after its sibling's leaves, where it comes second
                sibling[above] = size[b, node]
            elif level[b, node] <= limit[b]:
                place[node] = walked
                walked += size[b, node]
        for v in range(nodes - 1, -1, -1):
            above = parent[b, v]
            if above >= 0 and level[b, above] <= limit[b]:
                place[v] += place[above]
            if v < leaves:
                mask[b, v] = place[v] < count
