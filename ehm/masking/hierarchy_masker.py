"""Maskers by hierarchies, which are built on the host or on the device (Eq. 5-17)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ehm.errors import BackendError
from ehm.masking.base import BaseMasker, Prepared, PreparedOnDevice, check_pieces, explain_not_finite
from ehm.masking.hierarchy import Hierarchy, build_hierarchy
from ehm.masking.masks import draw_ranks, hierarchical_mask
from ehm.masking.pieces import MaskPiece
from ehm.masking.schedule import depth, masking_level
from ehm.masking.similarity import balance

if TYPE_CHECKING:
    from ehm.config import MaskConfig

__all__ = ["DeviceHierarchyMasker", "HostHierarchyMasker"]


class _HierarchyMasker(BaseMasker):
    """The common part of the two maskers by hierarchies.

    ``fixed`` is a depth that does not change in training, None to follow the schedule of ``config``.
    """

    def __init__(self, fixed: float | None, config: MaskConfig, patches: int) -> None:
        super().__init__(config)
        self._fixed = fixed
        self._patches = patches

    def _compute_depth(self, progress: float) -> float:
        """Return the depth at ``progress`` of training, a fraction of the height of a tree (Eq. 14)."""
        schedule = self._config.schedule if self._fixed is None else self._fixed
        return depth(progress, schedule, self._config.depth_range)

    def _draw_ranks(self, batch: Prepared, seed: Sequence[int], first: int) -> NDArray[np.int32]:
        """Draw the ranks of each view of each image: (B, views, M)."""
        streams = self.make_streams(batch, seed, first)
        ranks = draw_ranks(streams, len(streams), self._patches)
        return ranks.reshape(len(batch.images), self._config.views, -1)


class HostHierarchyMasker(_HierarchyMasker):
    """A masker by hierarchies that are built on the host."""

    def __init__(self, fixed: float | None, config: MaskConfig, patches: int, threads: int) -> None:
        super().__init__(fixed, config, patches)
        self._threads = threads

    def iterate_pieces(
        self, batch: Prepared, progress: float, seed: Sequence[int], first: int = 0
    ) -> Iterator[MaskPiece]:
        """See :meth:`ehm.masking.Masker.iterate_pieces`."""
        config = self._config
        mask_depth = self._compute_depth(progress)
        ranks = self._draw_ranks(batch, seed, first)
        for rows, similarity in check_pieces("similarity", batch.compute_similarity(), batch, self._patches):
            with explain_not_finite(similarity):
                if config.balance == "sinkhorn":
                    similarity = balance(similarity, threads=self._threads)
                hierarchy = build_hierarchy(similarity, threads=self._threads)
            # One tree for each image, however many masks are made of it.
            views = []
            for view_ranks in ranks[rows].swapaxes(0, 1):
                views.append(hierarchical_mask(hierarchy, mask_depth, config.ratio, ranks=view_ranks))
            masks = np.stack(views, axis=1).reshape(-1, self._patches)
            yield MaskPiece(masks, _describe_hierarchies(hierarchy, mask_depth))


class DeviceHierarchyMasker(_HierarchyMasker):
    """A masker by hierarchies that the backend builds on its device, for the whole batch at once."""

    def iterate_pieces(
        self, batch: Prepared, progress: float, seed: Sequence[int], first: int = 0
    ) -> Iterator[MaskPiece]:
        """See :meth:`ehm.masking.Masker.iterate_pieces`."""
        if not isinstance(batch, PreparedOnDevice):
            raise BackendError("mask.build device: this backend builds no trees on its device; use host or auto")
        ranks = self._draw_ranks(batch, seed, first)
        masks, figures = batch.compute_evolved_masks(self._compute_depth(progress), ranks)
        yield MaskPiece(masks, figures)


def _describe_hierarchies(hierarchy: Hierarchy, mask_depth: float) -> dict[str, NDArray[np.float64]]:
    """Compute the figures to log of each image: arrays (B,)."""
    level = masking_level(mask_depth, hierarchy.height)
    parts = hierarchy.parts(level)
    largest = np.where(parts, hierarchy.size, 0).max(axis=1) / hierarchy.patches
    return {
        "mask_level": level.astype(np.float64),
        "tree_height": hierarchy.height.astype(np.float64),
        "parts": parts.sum(axis=1).astype(np.float64),
        "largest_part": largest,
    }
