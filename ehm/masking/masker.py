"""Maskers, by the name of a masking: the training loop calls one of them in every step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from ehm.masking.base import BaseMasker, Masker, Prepared, check_pieces, explain_not_finite
from ehm.masking.hierarchy_masker import DeviceHierarchyMasker, HostHierarchyMasker
from ehm.masking.parts import em_parts, part_count, part_mask
from ehm.masking.pieces import MaskPiece
from ehm.masking.saliency import attmask_high, attmask_hint, attmask_low, mst_mask
from ehm.masking.similarity import balance
from ehm.masking.static import block_mask, grid_mask, large_block_mask, multi_block_mask, random_mask
from ehm.processors import count_available_processors

if TYPE_CHECKING:
    from ehm.config import MaskConfig

__all__ = ["STATIC_MASKINGS", "make_masker"]

_STATIC = {
    "random": random_mask,
    "grid": grid_mask,
    "block": block_mask,
    "large_block": large_block_mask,
    "ijepa": multi_block_mask,
}
STATIC_MASKINGS = tuple(_STATIC)
"""Maskings that do not look at the image."""
_SALIENCY = {"attmask_high": attmask_high, "attmask_hint": attmask_hint, "attmask_low": attmask_low, "mst": mst_mask}
_FIXED_DEPTHS = {"shallow": 0.2, "deep": 0.8}
"""Depths that do not change in training (Tables III and IV)."""


def make_masker(
    masking: str,
    config: MaskConfig,
    grid: tuple[int, int],
    build: Literal["host", "device"] = "host",
    threads: int | None = None,
) -> Masker:
    """Make the masker of the masking called ``masking`` for a ``grid`` = (height, width) of patches.

    ``random``, ``grid``, ``block``, ``large_block`` and ``ijepa`` do not look at the image; ``attmask_high``,
    ``attmask_hint``, ``attmask_low`` and ``mst`` go by what the class token attends to, ``epm`` by parts that EM finds.
    ``evolved`` deepens with training progress by the configuration's schedule and depth range; ``shallow`` and ``deep``
    stay at a fifth and four fifths of the height. ``build`` says whether hierarchies are built on the host or on the
    device. The host takes ``threads`` threads at most, as many as this process has processors if left out. Raises
    ValueError for any other name.
    """
    threads = threads or count_available_processors()
    if masking in _STATIC:
        return _StaticMasker(masking, config, grid)
    if masking in _SALIENCY:
        return _SaliencyMasker(masking, config, grid)
    if masking == "epm":
        return _PartMasker(config, grid, threads)
    if masking == "evolved" or masking in _FIXED_DEPTHS:
        fixed = _FIXED_DEPTHS.get(masking)
        patches = grid[0] * grid[1]
        if build == "device":
            return DeviceHierarchyMasker(fixed, config, patches)
        return HostHierarchyMasker(fixed, config, patches, threads)
    known = (*_STATIC, *_SALIENCY, "epm", "evolved", *_FIXED_DEPTHS)
    raise ValueError(f"masking must be one of {', '.join(known)}, not {masking!r}")


class _StaticMasker(BaseMasker):
    """A masker that does not look at the image."""

    def __init__(self, name: str, config: MaskConfig, grid: tuple[int, int]) -> None:
        super().__init__(config)
        self._draw = _STATIC[name]
        self._grid = grid

    def iterate_pieces(
        self, batch: Prepared, progress: float, seed: Sequence[int], first: int = 0
    ) -> Iterator[MaskPiece]:
        streams = self.make_streams(batch, seed, first)
        yield MaskPiece(self._draw(len(streams), self._grid, self._config.ratio, streams), {})


class _SaliencyMasker(BaseMasker):
    """A masker by the attention of the class token."""

    def __init__(self, name: str, config: MaskConfig, grid: tuple[int, int]) -> None:
        super().__init__(config)
        self._draw = _SALIENCY[name]
        self._patches = math.prod(grid)

    def iterate_pieces(
        self, batch: Prepared, progress: float, seed: Sequence[int], first: int = 0
    ) -> Iterator[MaskPiece]:
        views = self._config.views
        streams = self.make_streams(batch, seed, first)
        for rows, saliency in check_pieces("saliency", batch.compute_saliency(), batch, self._patches):
            row_streams = streams[rows.start * views : rows.stop * views]
            with explain_not_finite(saliency):
                masks = self._draw(np.repeat(saliency, views, axis=0), self._config.ratio, row_streams)
            yield MaskPiece(masks, {})


class _PartMasker(BaseMasker):
    """A masker by the parts that EM finds."""

    def __init__(self, config: MaskConfig, grid: tuple[int, int], threads: int) -> None:
        super().__init__(config)
        self._grid = grid
        self._threads = threads

    def iterate_pieces(
        self, batch: Prepared, progress: float, seed: Sequence[int], first: int = 0
    ) -> Iterator[MaskPiece]:
        config = self._config
        views = config.views
        patches = math.prod(self._grid)
        streams = self.make_streams(batch, seed, first)
        # The clustering of an image is the same for all of its masks, so it draws from the stream of the first one.
        image_streams = streams[::views]
        count = part_count(progress, patches)
        for rows, similarity in check_pieces("similarity", batch.compute_similarity(), batch, patches):
            with explain_not_finite(similarity):
                if config.balance == "sinkhorn":
                    similarity = balance(similarity, threads=self._threads)
                part = em_parts(similarity, count, image_streams[rows], self._threads)
            row_streams = streams[rows.start * views : rows.stop * views]
            mask = part_mask(np.repeat(part, views, axis=0), self._grid, progress, config.ratio, row_streams)
            sizes = (part[:, :, None] == np.arange(part.max() + 1)).sum(axis=1)
            figures = {"parts": (sizes > 0).sum(axis=1), "largest_part": sizes.max(axis=1) / patches}
            yield MaskPiece(mask, figures)
