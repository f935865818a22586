"""The hierarchy of an image's patches: average linkage on their similarity (Eq. 5-13).

Shapes: B images, N patches, M = 2N - 1 nodes; leaves are 0 to N - 1, inner nodes follow in order of merging.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.masking.similarity import check_similarity

__all__ = ["Hierarchy", "build_hierarchy"]


@dataclass(frozen=True)
class Hierarchy:
    """Binary trees over the patches of B images.

    ``parent`` (B, M) int32, -1 at the root; ``level`` (B, M) int32, 1 at leaves and 1 + the higher of the children's above
    (Eq. 10); ``size`` (B, M) int32, leaves below; ``similarity`` (B, M) float32, mean similarity of the two children
    (Eq. 7), NaN at leaves; ``children`` (B, N - 1, 2) int32.
    """

    parent: NDArray[np.int32]
    level: NDArray[np.int32]
    size: NDArray[np.int32]
    similarity: NDArray[np.float32]
    children: NDArray[np.int32]

    @property
    def height(self) -> NDArray[np.int32]:
        """Level of the root (B,)."""
        return self.level[:, -1]

    @property
    def patches(self) -> int:
        """Number of patches, N."""
        return (self.parent.shape[1] + 1) // 2

    def cut(self, level: int | NDArray[np.int32]) -> NDArray[np.int32]:
        """The part that each patch belongs to (B, N): the highest node above it whose level is at most ``level``.

        ``level`` is one number or one for each image (B,), from 1; the parts partition the patches.
        """
        limit = np.broadcast_to(np.asarray(level), self.height.shape)
        if limit.min() < 1:
            raise ValueError(f"level must be at least 1, not {limit.min()}")
        images = np.arange(len(self.parent))
        part = np.broadcast_to(np.arange(self.parent.shape[1], dtype=np.int32), self.parent.shape).copy()
        for node in range(self.parent.shape[1] - 2, -1, -1):  # parents have higher numbers than their children
            above = self.parent[:, node]
            joins = self.level[images, above] <= limit
            part[:, node] = np.where(joins, part[images, above], node)
        return part[:, : self.patches]

    def linkage(self, b: int) -> NDArray[np.float64]:
        """SciPy's linkage matrix (N - 1, 4) of image ``b``, with distance 1 - similarity."""
        n = self.patches
        return np.column_stack(
            [np.sort(self.children[b], axis=1), 1 - self.similarity[b, n:].astype(np.float64), self.size[b, n:]]
        )


def build_hierarchy(similarity: Any) -> Hierarchy:
    """Merge the two most similar parts of each image until one is left: (B, N, N) -> B binary trees.

    The similarity of two parts is the mean over all pairs of their patches (Eq. 7). Takes NumPy arrays and anything that
    NumPy reads without a copy. Raises ValueError for what is not square, holds NaN or is empty.
    """
    from ehm.masking._kernels import average_linkage  # numba: imported at first use

    checked = check_similarity(similarity)
    batch, n = checked.shape[:2]
    children = np.empty((batch, n - 1, 2), np.int32)
    heights = np.empty((batch, n - 1))
    left, right, merged = np.empty(n - 1, np.int64), np.empty(n - 1, np.int64), np.empty(n - 1)
    for b in range(batch):
        average_linkage(checked[b], left, right, merged)
        order = np.argsort(-merged, kind="stable")
        heights[b] = merged[order]
        slot = np.arange(n, dtype=np.int32)
        for k, step in enumerate(order):
            children[b, k] = slot[left[step]], slot[right[step]]
            slot[right[step]] = n + k
    return _annotate(children, heights)


def _annotate(children: NDArray[np.int32], heights: NDArray[np.float64]) -> Hierarchy:
    """Parents, levels and sizes of trees given by the ``children`` (B, N - 1, 2) of their inner nodes."""
    batch, inner = children.shape[:2]
    n, images = inner + 1, np.arange(batch)
    parent = np.full((batch, n + inner), -1, np.int32)
    level, size = np.ones_like(parent), np.ones_like(parent)
    for k in range(inner):
        first, second = children[:, k, 0], children[:, k, 1]
        parent[images, first] = parent[images, second] = n + k
        level[:, n + k] = 1 + np.maximum(level[images, first], level[images, second])
        size[:, n + k] = size[images, first] + size[images, second]
    similarity = np.full(parent.shape, np.nan, np.float32)
    similarity[:, n:] = heights
    return Hierarchy(parent, level, size, similarity, children)
