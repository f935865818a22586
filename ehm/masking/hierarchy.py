"""The hierarchy of an image's patches: average linkage on their similarity (Eq. 5-13).

Shapes: B images, N patches, M = 2N - 1 nodes; leaves are 0 to N - 1, inner nodes follow in order of merging.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ehm.masking._parallel import run_over_batch
from ehm.masking.similarity import convert_similarity, make_symmetric

__all__ = ["Hierarchy", "build_hierarchy"]


@dataclass(frozen=True, eq=False)
class Hierarchy:
    """Binary trees over the patches of B images.

    Each array is (B, M): a row for each image, a column for each node.
    """

    parent: NDArray[np.int32]
    """The node above each node, -1 at the root."""
    level: NDArray[np.int32]
    """1 at leaves; above them 1 + the higher level of the two children (Eq. 10)."""
    size: NDArray[np.int32]
    """Number of leaves below each node."""
    similarity: NDArray[np.float32]
    """Mean similarity between the two children (Eq. 7), NaN at leaves."""

    @property
    def height(self) -> NDArray[np.int32]:
        """Level of the root of each tree, (B,)."""
        return self.level[:, -1]

    @property
    def patches(self) -> int:
        """Number of patches, N."""
        return int(self.parent.shape[1] + 1) // 2

    def cut(self, level: ArrayLike) -> NDArray[np.int32]:
        """Return the part of each patch, the highest node above it whose level is at most ``level``: (B, N).

        ``level`` is one number or one for each image (B,), at least 1. The parts partition the patches.
        """
        from ehm.masking._draw import cut_trees  # numba: imported at first use

        part = np.empty((len(self.parent), self.patches), np.int32)
        cut_trees(self.parent, self.level, self._expand_level(level), part)
        return part

    def parts(self, level: ArrayLike) -> NDArray[np.bool_]:
        """Return a mask of the nodes that are the parts at ``level``, those that :meth:`cut` names: (B, M)."""
        limit = self._expand_level(level)[:, None]
        # At the root, the index -1 gives its own level.
        above = np.take_along_axis(self.level, self.parent, axis=1)
        at_root = np.arange(self.parent.shape[1]) == self.parent.shape[1] - 1
        parts: NDArray[np.bool_] = (self.level <= limit) & ((above > limit) | at_root)
        return parts

    def linkage(self, b: int) -> NDArray[np.float64]:
        """Return SciPy's linkage matrix (N - 1, 4) of image ``b``, with distance 1 - similarity."""
        n = self.patches
        # Sorted by parent, the two children of each inner node stand side by side.
        children = np.argsort(self.parent[b, :-1], kind="stable").reshape(n - 1, 2)
        distance = 1 - self.similarity[b, n:].astype(np.float64)
        return np.column_stack([children, distance, self.size[b, n:]])

    def _expand_level(self, level: ArrayLike) -> NDArray[np.int32]:
        """Return ``level`` as one number for each image, (B,); raises ValueError if it is not that or below 1."""
        limit = np.asarray(level)
        if limit.shape not in ((), (len(self.parent),)):
            raise ValueError(
                f"level must be one number or {len(self.parent)}, one an image; its shape is {limit.shape}"
            )
        if limit.min() < 1:
            raise ValueError(f"level must be at least 1, not {limit.min()}")
        return np.ascontiguousarray(np.broadcast_to(limit, self.height.shape), np.int32)


def build_hierarchy(similarity: Any, threads: int | None = None) -> Hierarchy:
    """Merge the two most similar parts of each image until one is left: (B, N, N) -> B binary trees.

    The similarity of two parts is the mean over all pairs of their patches (Eq. 7); the diagonal means nothing. Ties
    are broken as SciPy does, always in the same way. Arrays of any framework are read in place if they lie in host
    memory as contiguous float32 or float64. The result does not depend on ``threads`` (default: every processor).

    Raises ValueError if ``similarity`` is not (B, N, N) with B >= 1 and N >= 2, not finite, or not symmetric.
    """
    from ehm.masking._chain import FINE, build_trees  # numba: imported at first use

    array = convert_similarity(similarity)
    batch, n = array.shape[:2]
    tree = Hierarchy(
        parent=np.empty((batch, 2 * n - 1), np.int32),
        level=np.empty((batch, 2 * n - 1), np.int32),
        size=np.empty((batch, 2 * n - 1), np.int32),
        similarity=np.empty((batch, 2 * n - 1), np.float32),
    )
    status = np.empty(batch, np.int32)
    outputs = (tree.parent, tree.level, tree.size, tree.similarity, status)
    run_over_batch(build_trees, array, np.ones(batch), *outputs, entries=n * n, threads=threads)
    # The kernel takes similarities of at most 1 that are symmetric to the last bit. Others are rare, and may be slow.
    for b in np.flatnonzero(status != FINE):
        corrected = make_symmetric(array[b], int(b))[None]
        base = np.full(1, max(1.0, float(corrected.max())))
        build_trees(corrected, base, *(output[b : b + 1] for output in outputs))
    return tree
