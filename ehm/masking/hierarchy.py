"""The hierarchy of an image's patches: average linkage on their similarity (Eq. 5-13).

Shapes: B images, N patches, M = 2N - 1 nodes; leaves are 0 to N - 1, inner nodes follow in order of merging.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ehm.masking._parallel import over_batch
from ehm.masking.similarity import as_similarity, symmetric

__all__ = ["Hierarchy", "build_hierarchy"]


@dataclass(frozen=True, eq=False)
class Hierarchy:
    """Binary trees over the patches of B images.

    ``parent`` (B, M) int32, -1 at the root; ``level`` (B, M) int32, 1 at leaves and 1 + the higher of the children's
    above (Eq. 10); ``size`` (B, M) int32, leaves below; ``similarity`` (B, M) float32, mean similarity between the two
    children (Eq. 7), NaN at leaves.
    """

    parent: NDArray[np.int32]
    level: NDArray[np.int32]
    size: NDArray[np.int32]
    similarity: NDArray[np.float32]

    @property
    def height(self) -> NDArray[np.int32]:
        """Level of the root (B,)."""
        return self.level[:, -1]

    @property
    def patches(self) -> int:
        """Number of patches, N."""
        return int(self.parent.shape[1] + 1) // 2

    def cut(self, level: ArrayLike) -> NDArray[np.int32]:
        """The part that each patch belongs to (B, N): the highest node above it whose level is at most ``level``.

        ``level`` is one number or one for each image (B,), at least 1. The parts partition the patches.
        """
        from ehm.masking._draw import cut  # numba: imported at first use

        part = np.empty((len(self.parent), self.patches), np.int32)
        cut(self.parent, self.level, self._limit(level), part)
        return part

    def parts(self, level: ArrayLike) -> NDArray[np.bool_]:
        """Which nodes are the parts at ``level`` (B, M): those that :meth:`cut` names."""
        limit = self._limit(level)[:, None]
        above = np.take_along_axis(self.level, self.parent, axis=1)  # at the root: its own level
        at_root = np.arange(self.parent.shape[1]) == self.parent.shape[1] - 1
        parts: NDArray[np.bool_] = (self.level <= limit) & ((above > limit) | at_root)
        return parts

    def linkage(self, b: int) -> NDArray[np.float64]:
        """SciPy's linkage matrix (N - 1, 4) of image ``b``, with distance 1 - similarity."""
        n = self.patches
        children = np.argsort(self.parent[b, :-1], kind="stable").reshape(n - 1, 2)
        return np.column_stack([children, 1 - self.similarity[b, n:].astype(np.float64), self.size[b, n:]])

    def _limit(self, level: ArrayLike) -> NDArray[np.int32]:
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
    are broken as SciPy does, always in the same way. Arrays of any framework are read in place when they lie in host
    memory as contiguous float32 or float64. The result does not depend on ``threads`` (default: every processor).

    Raises ValueError for what is not (B, N, N) with B >= 1 and N >= 2, not finite, or not symmetric.
    """
    from ehm.masking._chain import FINE, build  # numba: imported at first use

    array = as_similarity(similarity)
    batch, n = array.shape[:2]
    tree = Hierarchy(
        parent=np.empty((batch, 2 * n - 1), np.int32),
        level=np.empty((batch, 2 * n - 1), np.int32),
        size=np.empty((batch, 2 * n - 1), np.int32),
        similarity=np.empty((batch, 2 * n - 1), np.float32),
    )
    outputs = tree.parent, tree.level, tree.size, tree.similarity, np.empty(batch, np.int32)
    over_batch(build, array, np.ones(batch), *outputs, work=n * n, threads=threads)
    for b in np.flatnonzero(outputs[-1] != FINE):
        # rare, so it may be slow: the kernel takes similarities of at most 1 that are symmetric to the last bit
        put_right = symmetric(array[b], int(b))[None]
        top = np.full(1, max(1.0, float(put_right.max())))
        build(put_right, top, *(output[b : b + 1] for output in outputs))
    return tree
