"""Trees and masks as the paper words them (Eq. 5-17), one image at a time and greedily.

Shapes: N patches, M = 2N - 1 nodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ehm.reference.layers import Floats

__all__ = ["Tree", "balance_similarity", "build_tree", "follows_tree"]


@dataclass(frozen=True)
class Tree:
    """The tree of an image: the ``parent`` and the ``level`` of each node (M,), and the ``leaves`` of each."""

    parent: NDArray[np.int64]
    level: NDArray[np.int64]
    leaves: tuple[tuple[int, ...], ...]


def balance_similarity(similarity: Floats, iterations: int = 20) -> Floats:
    """Balance (N, N) so that all rows have the same sum, without its diagonal."""
    balanced = np.array(similarity, np.float64)
    np.fill_diagonal(balanced, 0)
    for _ in range(iterations):
        rows = balanced.sum(axis=1, keepdims=True)
        columns = balanced.sum(axis=0, keepdims=True)
        balanced = balanced / np.sqrt(rows * columns)
    return balanced


def build_tree(similarity: Floats) -> Tree:
    """Merge the two most similar roots until one is left (Eq. 5-13): average linkage of (N, N)."""
    count = len(similarity)
    nodes = 2 * count - 1
    sums = np.full((nodes, nodes), -np.inf)
    sums[:count, :count] = (similarity + similarity.T) / 2
    np.fill_diagonal(sums, -np.inf)
    size = np.ones(nodes)
    parent = np.full(nodes, -1)
    level = np.ones(nodes, np.int64)
    leaves: list[tuple[int, ...]] = [(leaf,) for leaf in range(count)]
    for node in range(count, nodes):
        # the mean similarity of all pairs of leaves (Eq. 7); merged nodes have none
        means = sums[:node, :node] / np.outer(size[:node], size[:node])
        left, right = np.unravel_index(means.argmax(), means.shape)
        sums[node, :node] = sums[left, :node] + sums[right, :node]
        sums[[left, right]] = -np.inf
        sums[:, [left, right]] = -np.inf
        sums[node, [left, right]] = -np.inf
        sums[:node, node] = sums[node, :node]
        size[node] = size[left] + size[right]
        parent[[left, right]] = node
        level[node] = 1 + max(level[left], level[right])
        leaves.append(leaves[left] + leaves[right])
    return Tree(parent, level, tuple(leaves))


def follows_tree(mask: NDArray[np.bool_], tree: Tree, depth: float) -> bool:
    """Return whether a mask (N,) hides whole parts at ``depth`` in [0, 1] of the tree, but for one (Eq. 14-17).

    The parts are the largest nodes whose level is at most ``depth`` times the height. The one that is cut is cut along
    the tree: of the two children of a node that is hidden in part, at most one is.
    """
    highest = int(tree.level[-1])
    # a product such as 0.2 * 5 can come out a rounding error above a whole number
    level = min(max(math.ceil(round(depth * highest, 9)), 1), highest)
    hidden = np.array([mask[list(leaves)].mean() for leaves in tree.leaves])
    is_cut = (hidden > 0) & (hidden < 1)
    cut_parts = 0
    cut_children = np.zeros(len(is_cut), np.int64)
    for node, parent in enumerate(tree.parent):
        is_part = tree.level[node] <= level and (parent < 0 or tree.level[parent] > level)
        cut_parts += int(is_cut[node] and is_part)
        if is_cut[node] and parent >= 0 and tree.level[parent] <= level:
            cut_children[parent] += 1
    return cut_parts <= 1 and int(cut_children.max()) <= 1
