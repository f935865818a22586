"""Maskers, by the name of a masking: the training loop calls one of them in every step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, SupportsFloat, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ehm.errors import BackendError
from ehm.masking.hierarchy import Hierarchy, build_hierarchy
from ehm.masking.masks import draw_ranks, hierarchical_mask
from ehm.masking.parts import em_parts, part_count, part_mask
from ehm.masking.saliency import attmask_high, attmask_hint, attmask_low, mst_mask
from ehm.masking.schedule import depth, masking_level
from ehm.masking.similarity import balance
from ehm.masking.static import block_mask, grid_mask, large_block_mask, multi_block_mask, random_mask
from ehm.masking.streams import MaskStreams
from ehm.processors import count_available_processors

if TYPE_CHECKING:
    from ehm.config import MaskConfig

__all__ = ["SALIENCY_MASKINGS", "Masker", "make_masker"]

_STATIC = {
    "random": random_mask,
    "grid": grid_mask,
    "block": block_mask,
    "large_block": large_block_mask,
    "ijepa": multi_block_mask,
}
_SALIENCY = {"attmask_high": attmask_high, "attmask_hint": attmask_hint, "attmask_low": attmask_low, "mst": mst_mask}
SALIENCY_MASKINGS = tuple(_SALIENCY)
"""Maskings that go by what the class token attends to."""
_FIXED_DEPTHS = {"shallow": 0.2, "deep": 0.8}
"""Depths that do not change in training (Tables III and IV)."""
_FIGURES = ("mask_level", "tree_height", "parts", "largest_part")
"""Names of the figures that hierarchies give."""


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


class Masker(Protocol):
    """A function that makes the masks of a step."""

    def __call__(
        self, batch: Prepared, progress: float, seed: Sequence[int], first: int = 0
    ) -> tuple[Any, Mapping[str, SupportsFloat]]:
        """Make the masks (B * views, N) of ``batch``, the masks of one image together, and figures to log.

        ``progress`` of training is in [0, 1]. ``seed`` belongs to the step and is the same in all processes; ``first``
        is the row of the whole batch that ``batch`` begins at. The masks of an image depend on these and on the image,
        not on the number of processes that share the batch.

        Hierarchies give ``mask_level`` and ``tree_height``, the number of ``parts`` at the level and the share of the
        patches that the ``largest_part`` holds, each the mean over the batch; ``epm`` gives the latter two, other masks
        nothing. Raises ValueError if the similarity or saliency is not of all images and patches.
        """
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


class _StaticMasker:
    """A masker that does not look at the image."""

    def __init__(self, name: str, config: MaskConfig, grid: tuple[int, int]) -> None:
        self._draw = _STATIC[name]
        self._config = config
        self._grid = grid

    def __call__(
        self, batch: Prepared, progress: float, seed: Sequence[int], first: int = 0
    ) -> tuple[NDArray[np.bool_], dict[str, float]]:
        streams = _make_streams(batch, seed, first, self._config)
        return self._draw(len(streams), self._grid, self._config.ratio, streams), {}


class _SaliencyMasker:
    """A masker by the attention of the class token."""

    def __init__(self, name: str, config: MaskConfig, grid: tuple[int, int]) -> None:
        self._draw = _SALIENCY[name]
        self._config = config
        self._patches = math.prod(grid)

    def __call__(
        self, batch: Prepared, progress: float, seed: Sequence[int], first: int = 0
    ) -> tuple[NDArray[np.bool_], dict[str, float]]:
        views = self._config.views
        streams = _make_streams(batch, seed, first, self._config)
        masks = []
        for rows, saliency in _iterate_pieces("saliency", batch.compute_saliency(), batch, self._patches):
            row_streams = streams[rows.start * views : rows.stop * views]
            masks.append(self._draw(np.repeat(saliency, views, axis=0), self._config.ratio, row_streams))
        return np.concatenate(masks), {}


class _PartMasker:
    """A masker by the parts that EM finds."""

    def __init__(self, config: MaskConfig, grid: tuple[int, int], threads: int) -> None:
        self._config = config
        self._grid = grid
        self._threads = threads

    def __call__(
        self, batch: Prepared, progress: float, seed: Sequence[int], first: int = 0
    ) -> tuple[NDArray[np.bool_], dict[str, float]]:
        config = self._config
        patches = math.prod(self._grid)
        streams = _make_streams(batch, seed, first, config)
        # The clustering of an image is the same for all of its masks, so it draws from the stream of the first one.
        image_streams = streams[:: config.views]
        count = part_count(progress, patches)
        found = []
        for rows, similarity in _iterate_pieces("similarity", batch.compute_similarity(), batch, patches):
            if config.balance == "sinkhorn":
                similarity = balance(similarity, threads=self._threads)
            found.append(em_parts(similarity, count, image_streams[rows], self._threads))
        part = np.concatenate(found)
        mask = part_mask(np.repeat(part, config.views, axis=0), self._grid, progress, config.ratio, streams)
        sizes = (part[:, :, None] == np.arange(part.max() + 1)).sum(axis=1)
        parts = float((sizes > 0).sum(axis=1).mean())
        largest_part = float(sizes.max(axis=1).mean() / patches)
        return mask, {"parts": parts, "largest_part": largest_part}


class _HierarchyMasker:
    """The common part of the two maskers by hierarchies; ``fixed`` is a depth, or None to follow the schedule."""

    def __init__(self, fixed: float | None, config: MaskConfig, patches: int) -> None:
        self._fixed = fixed
        self._config = config
        self._patches = patches

    def _depth_at(self, progress: float) -> float:
        schedule = self._config.schedule if self._fixed is None else self._fixed
        return depth(progress, schedule, self._config.depth_range)

    def _draw_ranks(self, batch: Prepared, seed: Sequence[int], first: int) -> NDArray[np.int32]:
        """Draw the ranks of each view of each image: (B, views, M)."""
        streams = _make_streams(batch, seed, first, self._config)
        ranks = draw_ranks(streams, len(streams), self._patches)
        return ranks.reshape(len(batch.images), self._config.views, -1)


class _HostHierarchyMasker(_HierarchyMasker):
    """A masker by hierarchies that are built on the host."""

    def __init__(self, fixed: float | None, config: MaskConfig, patches: int, threads: int) -> None:
        super().__init__(fixed, config, patches)
        self._threads = threads

    def __call__(
        self, batch: Prepared, progress: float, seed: Sequence[int], first: int = 0
    ) -> tuple[NDArray[np.bool_], dict[str, float]]:
        config = self._config
        mask_depth = self._depth_at(progress)
        ranks = self._draw_ranks(batch, seed, first)
        masks = []
        figures = []
        for rows, similarity in _iterate_pieces("similarity", batch.compute_similarity(), batch, self._patches):
            if config.balance == "sinkhorn":
                similarity = balance(similarity, threads=self._threads)
            hierarchy = build_hierarchy(similarity, threads=self._threads)
            # One tree for each image, however many masks are made of it.
            views = []
            for view_ranks in ranks[rows].swapaxes(0, 1):
                views.append(hierarchical_mask(hierarchy, mask_depth, config.ratio, ranks=view_ranks))
            masks.append(np.stack(views, axis=1).reshape(-1, self._patches))
            figures.append(_compute_figures(hierarchy, mask_depth))
        means = np.concatenate(figures, axis=1).mean(axis=1).tolist()
        return np.concatenate(masks), dict(zip(_FIGURES, means, strict=True))


class _DeviceHierarchyMasker(_HierarchyMasker):
    """A masker by hierarchies that the backend builds on its device."""

    def __call__(
        self, batch: Prepared, progress: float, seed: Sequence[int], first: int = 0
    ) -> tuple[Any, Mapping[str, SupportsFloat]]:
        if not isinstance(batch, PreparedOnDevice):
            raise BackendError("mask.build device: this backend builds no trees on its device; use host or auto")
        return batch.evolved_mask(self._depth_at(progress), self._draw_ranks(batch, seed, first))


def _compute_figures(hierarchy: Hierarchy, mask_depth: float) -> NDArray[np.float64]:
    """Compute the figures to log of each image: (4, B), in the order of ``_FIGURES``."""
    level = masking_level(mask_depth, hierarchy.height)
    parts = hierarchy.parts(level)
    largest = np.where(parts, hierarchy.size, 0).max(axis=1) / hierarchy.patches
    return np.stack([level, hierarchy.height, parts.sum(axis=1), largest]).astype(np.float64)


def _make_streams(batch: Prepared, seed: Sequence[int], first: int, config: MaskConfig) -> MaskStreams:
    """Return the random streams of all masks of ``batch``: B * views, those of one image together."""
    return MaskStreams(seed, range(first, first + len(batch.images)), config.views)


def _iterate_pieces(
    name: str, pieces: Iterable[NDArray[np.float32]], batch: Prepared, patches: int
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield the pieces of a similarity or saliency with their rows of ``batch``, as soon as they arrive.

    Raises ValueError unless they are of all images of ``batch`` and of ``patches``.
    """
    done = 0
    for piece in pieces:
        if piece.shape[-1] != patches:
            raise ValueError(f"{name} must be of {patches} patches; its shape is {piece.shape}")
        yield slice(done, done + len(piece)), piece
        done += len(piece)
    if done != len(batch.images):
        raise ValueError(f"{name} must be of all {len(batch.images)} images, not of {done}")
