"""Maskers, by the name of a masking: the training loop calls one of them in every step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol, SupportsFloat, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ehm.errors import BackendError
from ehm.masking.hierarchy import Hierarchy, build_hierarchy
from ehm.masking.masks import draw_ranks, hierarchical_mask
from ehm.masking.parts import em_parts, part_count, part_mask
from ehm.masking.pieces import BatchMasks, MaskPiece
from ehm.masking.saliency import attmask_high, attmask_hint, attmask_low, mst_mask
from ehm.masking.schedule import depth, masking_level
from ehm.masking.similarity import balance
from ehm.masking.static import block_mask, grid_mask, large_block_mask, multi_block_mask, random_mask
from ehm.masking.streams import MaskStreams
from ehm.processors import count_available_processors

if TYPE_CHECKING:
    from ehm.config import MaskConfig

__all__ = ["STATIC_MASKINGS", "Masker", "NotFiniteAttentionError", "make_masker"]

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


class Prepared(Protocol):
    """The images that a masker makes masks for (:class:`ehm.backends.base.PreparedBatch`)."""

    @property
    def images(self) -> NDArray[np.uint8]: ...

    def compute_similarity(self) -> Iterable[NDArray[np.float32]]: ...

    def compute_saliency(self) -> Iterable[NDArray[np.float32]]: ...


@runtime_checkable
class PreparedOnDevice(Protocol):
    """Images whose hierarchies can be built on the device (:class:`ehm.backends.base.MasksOnDevice`)."""

    def evolved_mask(self, depth: float, ranks: NDArray[np.int32]) -> tuple[Any, Mapping[str, SupportsFloat]]: ...


class NotFiniteAttentionError(ValueError):
    """The similarity or saliency that masks are made of is not finite, because the weights are not."""


class Masker(Protocol):
    """A function that makes the masks of a step.

    ``progress`` of training is in [0, 1]. ``seed`` belongs to the step and is the same in all processes; ``first`` is
    the row of the whole batch that ``batch`` begins at. The masks of an image depend on these and on the image, not on
    the number of processes that share the batch.

    Hierarchies give the figures ``mask_level`` and ``tree_height``, the number of ``parts`` at the level and the share
    of the patches that the ``largest_part`` holds; ``epm`` gives the latter two, other masks nothing.
    """

    def __call__(
        self, batch: Prepared, progress: float, seed: Sequence[int], first: int = 0
    ) -> tuple[Any, Mapping[str, SupportsFloat]]:
        """Make the masks (B * views, N) of ``batch``, the masks of one image together, and figures to log.

        Each figure is the mean over the batch. Raises ValueError if the similarity or saliency is not of all images and
        patches, and NotFiniteAttentionError if it is not finite.
        """
        ...

    def iterate_pieces(
        self, batch: Prepared, progress: float, seed: Sequence[int], first: int = 0
    ) -> Iterator[MaskPiece]:
        """Make the same masks piece by piece, in order: as soon as the similarity of a piece has arrived."""
        ...


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
            return _DeviceHierarchyMasker(fixed, config, patches)
        return _HostHierarchyMasker(fixed, config, patches, threads)
    known = (*_STATIC, *_SALIENCY, "epm", "evolved", *_FIXED_DEPTHS)
    raise ValueError(f"masking must be one of {', '.join(known)}, not {masking!r}")


class _Masker(ABC):
    """The common part of all maskers, which make masks in pieces."""

    def __init__(self, config: MaskConfig) -> None:
        self._config = config

    def __call__(
        self, batch: Prepared, progress: float, seed: Sequence[int], first: int = 0
    ) -> tuple[Any, Mapping[str, SupportsFloat]]:
        """See :meth:`Masker.__call__`."""
        count = len(batch.images) * self._config.views
        masks = BatchMasks(self.iterate_pieces(batch, progress, seed, first), count)
        return masks.read_all(), masks.read_figures()

    @abstractmethod
    def iterate_pieces(
        self, batch: Prepared, progress: float, seed: Sequence[int], first: int = 0
    ) -> Iterator[MaskPiece]:
        """See :meth:`Masker.iterate_pieces`."""

    def _make_streams(self, batch: Prepared, seed: Sequence[int], first: int) -> MaskStreams:
        """Return the random streams of all masks of ``batch``: B * views, those of one image together."""
        return MaskStreams(seed, range(first, first + len(batch.images)), self._config.views)


class _StaticMasker(_Masker):
    """A masker that does not look at the image."""

    def __init__(self, name: str, config: MaskConfig, grid: tuple[int, int]) -> None:
        super().__init__(config)
        self._draw = _STATIC[name]
        self._grid = grid

    def iterate_pieces(
        self, batch: Prepared, progress: float, seed: Sequence[int], first: int = 0
    ) -> Iterator[MaskPiece]:
        streams = self._make_streams(batch, seed, first)
        yield MaskPiece(self._draw(len(streams), self._grid, self._config.ratio, streams), {})


class _SaliencyMasker(_Masker):
    """A masker by the attention of the class token."""

    def __init__(self, name: str, config: MaskConfig, grid: tuple[int, int]) -> None:
        super().__init__(config)
        self._draw = _SALIENCY[name]
        self._patches = math.prod(grid)

    def iterate_pieces(
        self, batch: Prepared, progress: float, seed: Sequence[int], first: int = 0
    ) -> Iterator[MaskPiece]:
        views = self._config.views
        streams = self._make_streams(batch, seed, first)
        for rows, saliency in _check_pieces("saliency", batch.compute_saliency(), batch, self._patches):
            row_streams = streams[rows.start * views : rows.stop * views]
            with _explain_not_finite(saliency):
                masks = self._draw(np.repeat(saliency, views, axis=0), self._config.ratio, row_streams)
            yield MaskPiece(masks, {})


class _PartMasker(_Masker):
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
        streams = self._make_streams(batch, seed, first)
        # The clustering of an image is the same for all of its masks, so it draws from the stream of the first one.
        image_streams = streams[::views]
        count = part_count(progress, patches)
        for rows, similarity in _check_pieces("similarity", batch.compute_similarity(), batch, patches):
            with _explain_not_finite(similarity):
                if config.balance == "sinkhorn":
                    similarity = balance(similarity, threads=self._threads)
                part = em_parts(similarity, count, image_streams[rows], self._threads)
            row_streams = streams[rows.start * views : rows.stop * views]
            mask = part_mask(np.repeat(part, views, axis=0), self._grid, progress, config.ratio, row_streams)
            sizes = (part[:, :, None] == np.arange(part.max() + 1)).sum(axis=1)
            figures = {"parts": (sizes > 0).sum(axis=1), "largest_part": sizes.max(axis=1) / patches}
            yield MaskPiece(mask, figures)


class _HierarchyMasker(_Masker):
    """The common part of the two maskers by hierarchies; ``fixed`` is a depth, or None to follow the schedule."""

    def __init__(self, fixed: float | None, config: MaskConfig, patches: int) -> None:
        super().__init__(config)
        self._fixed = fixed
        self._patches = patches

    def _depth_at(self, progress: float) -> float:
        schedule = self._config.schedule if self._fixed is None else self._fixed
        return depth(progress, schedule, self._config.depth_range)

    def _draw_ranks(self, batch: Prepared, seed: Sequence[int], first: int) -> NDArray[np.int32]:
        """Draw the ranks of each view of each image: (B, views, M)."""
        streams = self._make_streams(batch, seed, first)
        ranks = draw_ranks(streams, len(streams), self._patches)
        return ranks.reshape(len(batch.images), self._config.views, -1)


class _HostHierarchyMasker(_HierarchyMasker):
    """A masker by hierarchies that are built on the host."""

    def __init__(self, fixed: float | None, config: MaskConfig, patches: int, threads: int) -> None:
        super().__init__(fixed, config, patches)
        self._threads = threads

    def iterate_pieces(
        self, batch: Prepared, progress: float, seed: Sequence[int], first: int = 0
    ) -> Iterator[MaskPiece]:
        config = self._config
        mask_depth = self._depth_at(progress)
        ranks = self._draw_ranks(batch, seed, first)
        for rows, similarity in _check_pieces("similarity", batch.compute_similarity(), batch, self._patches):
            with _explain_not_finite(similarity):
                if config.balance == "sinkhorn":
                    similarity = balance(similarity, threads=self._threads)
                hierarchy = build_hierarchy(similarity, threads=self._threads)
            # One tree for each image, however many masks are made of it.
            views = []
            for view_ranks in ranks[rows].swapaxes(0, 1):
                views.append(hierarchical_mask(hierarchy, mask_depth, config.ratio, ranks=view_ranks))
            masks = np.stack(views, axis=1).reshape(-1, self._patches)
            yield MaskPiece(masks, _describe_hierarchies(hierarchy, mask_depth))


class _DeviceHierarchyMasker(_HierarchyMasker):
    """A masker by hierarchies that the backend builds on its device, for the whole batch at once."""

    def iterate_pieces(
        self, batch: Prepared, progress: float, seed: Sequence[int], first: int = 0
    ) -> Iterator[MaskPiece]:
        if not isinstance(batch, PreparedOnDevice):
            raise BackendError("mask.build device: this backend builds no trees on its device; use host or auto")
        masks, figures = batch.evolved_mask(self._depth_at(progress), self._draw_ranks(batch, seed, first))
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


@contextmanager
def _explain_not_finite(values: NDArray[np.float32]) -> Iterator[None]:
    """Raise NotFiniteAttentionError if making masks of ``values`` fails because these are not finite."""
    try:
        yield
    except ValueError as error:
        if np.isfinite(values).all():
            raise
        raise NotFiniteAttentionError(str(error)) from None


def _check_pieces(
    name: str, pieces: Iterable[NDArray[np.float32]], batch: Prepared, patches: int
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield the pieces of a similarity or saliency with their rows of ``batch``, as soon as they arrive.

    Raises ValueError unless they are of all images of ``batch`` and of ``patches``.
    """
    images = len(batch.images)
    done = 0
    for piece in pieces:
        if piece.shape[-1] != patches:
            raise ValueError(f"{name} must be of {patches} patches; its shape is {piece.shape}")
        rows = slice(done, done + len(piece))
        done = rows.stop
        if done > images:
            break
        yield rows, piece
    if done != images:
        raise ValueError(f"{name} must be of all {images} images, not of {done}")
