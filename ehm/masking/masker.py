"""From the name of a masking to masks: what the training loop calls once a step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
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
from ehm.masking.static import block_mask, grid_mask, large_block_mask, random_mask
from ehm.processors import available_processors

if TYPE_CHECKING:
    from ehm.config import MaskConfig

__all__ = ["Masker", "make_masker"]

_STATIC = {"random": random_mask, "grid": grid_mask, "block": block_mask, "large_block": large_block_mask}
_SALIENCY = {"attmask_high": attmask_high, "attmask_hint": attmask_hint, "attmask_low": attmask_low, "mst": mst_mask}
_FIXED = {"shallow": 0.2, "deep": 0.8}  # Tables III and IV


class Looks(Protocol):
    """What a masker needs of a learner (:class:`ehm.backends.base.Learner`)."""

    def similarity(self, images: NDArray[np.uint8]) -> Iterable[NDArray[np.float32]]: ...

    def saliency(self, images: NDArray[np.uint8]) -> Iterable[NDArray[np.float32]]: ...


@runtime_checkable
class LooksOnDevice(Protocol):
    """What a masker needs where hierarchies are built on the device (:class:`ehm.backends.base.MasksOnDevice`)."""

    def evolved_mask(
        self, images: NDArray[np.uint8], depth: float, ranks: NDArray[np.int32]
    ) -> tuple[Any, Mapping[str, SupportsFloat]]: ...


class Rows(Protocol):
    """What a masker needs of a batch (:class:`ehm.data.Batch`): rows ``first`` to ``first + B`` of ``total``."""

    @property
    def images(self) -> NDArray[np.uint8]: ...

    @property
    def first(self) -> int: ...

    @property
    def total(self) -> int: ...


class Masker(Protocol):
    """Makes the masks of a step."""

    def __call__(
        self, learner: Looks, batch: Rows, progress: float, rng: np.random.Generator
    ) -> tuple[Any, Mapping[str, SupportsFloat]]:
        """Masks (B * views, N) of ``batch``, those of one image together, and figures to log, at progress in [0, 1].

        ``rng`` is that of the step, the same in all processes: each takes the numbers of its own rows, so that an image
        gets the same mask however many processes share the batch.

        Hierarchies give ``mask_level`` and ``tree_height``, the number of ``parts`` at the level and the share of the
        patches that the ``largest_part`` holds, each the mean over the batch; ``epm`` gives the latter two, other masks
        nothing.
        """
        ...


def make_masker(
    masking: str,
    config: MaskConfig,
    grid: tuple[int, int],
    build: Literal["host", "device"] = "host",
    sharers: int = 1,
) -> Masker:
    """The masking called ``masking`` for a ``grid`` = (height, width) of patches.

    ``random``, ``grid``, ``block`` and ``large_block`` do not look at the image; ``attmask_high``, ``attmask_hint``,
    ``attmask_low`` and ``mst`` go by what the class token attends to, ``epm`` by parts that EM finds. ``evolved``
    deepens with training progress by the configuration's schedule and depth range; ``shallow`` and ``deep`` stay at a
    fifth and four fifths of the height. ``build`` is where hierarchies are built; what is built on the host takes as
    many threads as it has processors, divided among ``sharers`` processes that do the same. Raises ValueError for any
    other name.
    """
    threads = max(1, available_processors() // sharers)
    if masking in _STATIC:
        return _Static(masking, config, grid)
    if masking in _SALIENCY:
        return _ByClassToken(masking, config, grid)
    if masking == "epm":
        return _ByParts(config, grid, threads)
    if masking == "evolved" or masking in _FIXED:
        fixed, patches = _FIXED.get(masking), grid[0] * grid[1]
        if build == "device":
            return _OnDevice(fixed, config, patches)
        return _OnHost(fixed, config, patches, threads)
    known = (*_STATIC, *_SALIENCY, "epm", "evolved", *_FIXED)
    raise ValueError(f"masking must be one of {', '.join(known)}, not {masking!r}")


class _Static:
    def __init__(self, name: str, config: MaskConfig, grid: tuple[int, int]) -> None:
        self._name, self._ratio, self._views, self._grid = name, config.ratio, config.views, grid

    def __call__(
        self, learner: Looks, batch: Rows, progress: float, rng: np.random.Generator
    ) -> tuple[NDArray[np.bool_], dict[str, float]]:
        first, count, total = (self._views * rows for rows in (batch.first, len(batch.images), batch.total))
        if self._name == "random":  # one number a patch, so that other processes' images need not be masked
            _skip(rng, first * self._grid[0] * self._grid[1])
            return random_mask(count, self._grid, self._ratio, rng), {}
        return _STATIC[self._name](total, self._grid, self._ratio, rng)[first : first + count], {}


class _ByClassToken:
    def __init__(self, name: str, config: MaskConfig, grid: tuple[int, int]) -> None:
        self._draw, self._patches = _SALIENCY[name], math.prod(grid)
        self._ratio, self._views = config.ratio, config.views

    def __call__(
        self, learner: Looks, batch: Rows, progress: float, rng: np.random.Generator
    ) -> tuple[NDArray[np.bool_], dict[str, float]]:
        _skip(rng, batch.first * self._views * self._patches)
        masks = [
            self._draw(np.repeat(saliency, self._views, axis=0), self._ratio, rng)
            for saliency in _checked("saliency", learner.saliency(batch.images), batch, self._patches)
        ]
        return np.concatenate(masks), {}


class _ByParts:
    def __init__(self, config: MaskConfig, grid: tuple[int, int], threads: int) -> None:
        self._config, self._grid, self._threads = config, grid, threads

    def __call__(
        self, learner: Looks, batch: Rows, progress: float, rng: np.random.Generator
    ) -> tuple[NDArray[np.bool_], dict[str, float]]:
        config, patches = self._config, math.prod(self._grid)
        # the numbers of all clusterings come before those of all masks, each in order of the images
        _skip(rng, batch.first * patches)
        found = []
        for similarity in _checked("similarity", learner.similarity(batch.images), batch, patches):
            if config.balance == "sinkhorn":
                similarity = balance(similarity, threads=self._threads)
            found.append(em_parts(similarity, part_count(progress, patches), rng, self._threads))
        part = np.concatenate(found)
        _skip(rng, (batch.total - batch.first - len(part)) * patches)
        _skip(rng, batch.first * config.views * (2 * patches + 4))
        mask = part_mask(np.repeat(part, config.views, axis=0), self._grid, progress, config.ratio, rng)
        sizes = (part[:, :, None] == np.arange(part.max() + 1)).sum(axis=1)
        figures = {"parts": (sizes > 0).sum(axis=1).mean(), "largest_part": sizes.max(axis=1).mean() / patches}
        return mask, {name: float(value) for name, value in figures.items()}


class _Hierarchical:
    def __init__(self, fixed: float | None, config: MaskConfig, patches: int) -> None:
        self._fixed, self._config, self._patches = fixed, config, patches

    def _depth(self, progress: float) -> float:
        config = self._config
        return depth(progress, config.schedule if self._fixed is None else self._fixed, config.depth_range)

    def _ranks(self, batch: Rows, rng: np.random.Generator) -> NDArray[np.int32]:
        """Of each view of each image: (B, views, M)."""
        nodes, views = 2 * self._patches - 1, self._config.views
        _skip(rng, batch.first * views * nodes)
        return draw_ranks(rng, len(batch.images) * views, self._patches).reshape(-1, views, nodes)


class _OnHost(_Hierarchical):
    def __init__(self, fixed: float | None, config: MaskConfig, patches: int, threads: int) -> None:
        super().__init__(fixed, config, patches)
        self._threads = threads

    def __call__(
        self, learner: Looks, batch: Rows, progress: float, rng: np.random.Generator
    ) -> tuple[NDArray[np.bool_], dict[str, float]]:
        at, ranks, config = self._depth(progress), self._ranks(batch, rng), self._config
        masks, figures, done = [], [], 0
        for similarity in _checked("similarity", learner.similarity(batch.images), batch, self._patches):
            if config.balance == "sinkhorn":
                similarity = balance(similarity, threads=self._threads)
            hierarchy = build_hierarchy(similarity, threads=self._threads)
            part = ranks[done : done + len(similarity)]
            views = [hierarchical_mask(hierarchy, at, config.ratio, ranks=view) for view in part.swapaxes(0, 1)]
            masks.append(np.stack(views, axis=1).reshape(-1, self._patches))
            figures.append(_figures(hierarchy, at))
            done += len(similarity)
        means = np.concatenate(figures, axis=1).mean(axis=1).tolist()
        return np.concatenate(masks), dict(zip(_FIGURES, means, strict=True))


class _OnDevice(_Hierarchical):
    def __call__(
        self, learner: Looks, batch: Rows, progress: float, rng: np.random.Generator
    ) -> tuple[Any, Mapping[str, SupportsFloat]]:
        if not isinstance(learner, LooksOnDevice):
            raise BackendError("mask.build device: this backend builds no trees on its device; use host or auto")
        return learner.evolved_mask(batch.images, self._depth(progress), self._ranks(batch, rng))


_FIGURES = ("mask_level", "tree_height", "parts", "largest_part")


def _figures(hierarchy: Hierarchy, at: float) -> NDArray[np.float64]:
    """What to log of each image: (4, B), in the order of ``_FIGURES``."""
    level = masking_level(at, hierarchy.height)
    parts = hierarchy.parts(level)
    largest = np.where(parts, hierarchy.size, 0).max(axis=1) / hierarchy.patches
    return np.stack([level, hierarchy.height, parts.sum(axis=1), largest]).astype(np.float64)


def _checked(
    name: str, parts: Iterable[NDArray[np.float32]], batch: Rows, patches: int
) -> Iterator[NDArray[np.float32]]:
    """``parts`` of what a learner saw; ValueError unless they are of all images of ``batch`` and of ``patches``."""
    done = 0
    for part in parts:
        if part.shape[-1] != patches:
            raise ValueError(f"{name} must be of {patches} patches; its shape is {part.shape}")
        done += len(part)
        yield part
    if done != len(batch.images):
        raise ValueError(f"{name} must be of all {len(batch.images)} images, not of {done}")


def _skip(rng: np.random.Generator, count: int) -> None:
    """Pass over ``count`` numbers that ``rng.random`` would give."""
    bits: Any = rng.bit_generator
    if hasattr(bits, "advance"):  # PCG64, NumPy's default, at no cost
        bits.advance(count)
    else:
        rng.random(count)
