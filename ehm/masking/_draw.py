# mypy: disable-error-code="untyped-decorator"
"""Walks over the trees of a batch, compiled by numba: the parts at a level, and masks made of them.

Parents have higher numbers than their children, so that a loop from the last node down meets every parent first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ehm.masking._jit import kernel

__all__ = ["cut", "draw", "shuffle"]


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
def shuffle(uniform: NDArray[np.float64], ranks: NDArray[np.int32]) -> None:
    """A permutation of 0 to M - 1 in each row of ``ranks`` (B, M) from ``uniform`` numbers in [0, 1)."""
    for b in range(ranks.shape[0]):
        for i in range(ranks.shape[1]):
            ranks[b, i] = i
        for i in range(ranks.shape[1] - 1, 0, -1):  # Durstenfeld, 1964
            j = int(uniform[b, i] * (i + 1))
            ranks[b, i], ranks[b, j] = ranks[b, j], ranks[b, i]


@kernel
def draw(
    parent: NDArray[np.int32],
    level: NDArray[np.int32],
    size: NDArray[np.int32],
    limit: NDArray[np.int32],
    ranks: NDArray[np.int32],
    count: int,
    mask: NDArray[np.bool_],
) -> None:
    """Hide the first ``count`` leaves of the parts at ``limit`` (B,), walked depth first, into ``mask`` (B, N).

    Of two parts, or of two children, the one of lower rank is walked first. ``ranks`` (B, M) goes by identity: a leaf's
    is its number; an inner node's is N - 1 plus the larger of the smallest leaves below its two children, which no
    other inner node has. So the mask follows from the shape of the tree, not from how its nodes are numbered. Leaves
    are not listed: each node's place in the walk follows from its parent's.
    """
    nodes = parent.shape[1]
    leaves = mask.shape[1]
    order = np.empty(nodes, np.int32)
    place = np.empty(nodes, np.int32)
    sibling = np.empty(nodes, np.int32)
    first = np.empty(nodes, np.int32)  # the smallest leaf below a node, -1 where no child has been met yet
    for b in range(parent.shape[0]):
        for v in range(nodes):
            first[v], sibling[v] = v if v < leaves else -1, 0
        for v in range(leaves):
            order[ranks[b, v]] = v
        for v in range(nodes - 1):  # both children are met before their parent
            above = parent[b, v]
            if first[above] < 0:
                first[above] = first[v]
            else:
                order[ranks[b, leaves - 1 + max(first[above], first[v])]] = above
                first[above] = min(first[above], first[v])
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
