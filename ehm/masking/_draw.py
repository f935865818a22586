# mypy: disable-error-code="untyped-decorator"
"""Walks over the trees of a batch, compiled by numba: the parts at a level, and masks made of them.

Parents have higher numbers than their children, so that a loop from the last node down meets every parent first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ehm.masking._jit import kernel

__all__ = ["cut_trees", "draw_masks", "shuffle_ranks"]


@kernel
def cut_trees(
    parent: NDArray[np.int32], level: NDArray[np.int32], limit: NDArray[np.int32], part: NDArray[np.int32]
) -> None:
    """Find the highest node of level at most ``limit`` (B,) above each leaf, of (B, M) trees into ``part`` (B, N)."""
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
def shuffle_ranks(uniform: NDArray[np.float64], ranks: NDArray[np.int32]) -> None:
    """Write a permutation of 0 to M - 1 into each row of ``ranks`` (B, M) from ``uniform`` numbers in [0, 1)."""
    for b in range(ranks.shape[0]):
        for i in range(ranks.shape[1]):
            ranks[b, i] = i
        for i in range(ranks.shape[1] - 1, 0, -1):  # Durstenfeld, 1964
            j = int(uniform[b, i] * (i + 1))
            ranks[b, i], ranks[b, j] = ranks[b, j], ranks[b, i]


@kernel
def draw_masks(
    parent: NDArray[np.int32],
    level: NDArray[np.int32],
    size: NDArray[np.int32],
    limit: NDArray[np.int32],
    ranks: NDArray[np.int32],
    count: int,
    mask: NDArray[np.bool_],
) -> None:
    """Hide the first ``count`` leaves of the parts at ``limit`` (B,), walked depth first, in ``mask`` (B, N).

    Of two parts, or of two children, the one of lower rank is walked first. ``ranks`` (B, M) are given to identities: a
    leaf's is its number; an inner node's is N - 1 plus the larger of the smallest leaves below its two children, which
    no other inner node has. So the mask follows from the shape of the tree, not from how its nodes are numbered.
    """
    nodes = parent.shape[1]
    leaves = mask.shape[1]
    order = np.empty(nodes, np.int32)
    place = np.empty(nodes, np.int32)  # leaves that are walked before a node: in all, or below its parent
    sibling = np.empty(nodes, np.int32)  # leaves of the child of a node that is walked first, 0 before any is
    first = np.empty(nodes, np.int32)  # the smallest leaf below a node, -1 if no child has been met yet
    for b in range(parent.shape[0]):
        for v in range(nodes):
            first[v] = v if v < leaves else -1
            sibling[v] = 0
        # 1. Sort the nodes by the rank of their identity.
        for v in range(leaves):
            order[ranks[b, v]] = v
        for v in range(nodes - 1):  # both children are met before their parent
            above = parent[b, v]
            if first[above] < 0:
                first[above] = first[v]
            else:
                order[ranks[b, leaves - 1 + max(first[above], first[v])]] = above
                first[above] = min(first[above], first[v])
        # 2. Place each part after the parts before it, and each child after its sibling. Leaves need not be listed.
        walked = 0
        for node in order:
            above = parent[b, node]
            if above >= 0 and level[b, above] <= limit[b]:
                place[node] = sibling[above]
                sibling[above] = size[b, node]
            elif level[b, node] <= limit[b]:
                place[node] = walked
                walked += size[b, node]
        # 3. Add up the places from the parts down to the leaves.
        for v in range(nodes - 1, -1, -1):
            above = parent[b, v]
            if above >= 0 and level[b, above] <= limit[b]:
                place[v] += place[above]
            if v < leaves:
                mask[b, v] = place[v] < count
