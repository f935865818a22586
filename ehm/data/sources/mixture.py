"""Several sources of images as one, from which training draws each as often as its weight says.

n images of all sources together, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.config.pixel_format import PixelFormat
from ehm.data.repetition import repeat_by_weight
from ehm.data.sources.base import Source, Split, StoredSource
from ehm.data.sources.table.source import TableSource

__all__ = ["MixedSource", "mix_sources"]

_SEED = 3
"""Begins the seed of the images that a weight below 1 draws, or the part of one above."""


@dataclass(frozen=True)
class MixedSource:
    """The images of ``sources`` one behind the other; ``ends`` are the numbers at which each of them ends.

    ``names`` are those of the sources in the configuration. Classes of the same name are one class, in the order in
    which they come up. ``targets`` (n, C) and ``groups`` (n,) are those of
    :class:`ehm.data.sources.table.source.TableSource`.
    """

    sources: tuple[Source, ...]
    names: tuple[str, ...]
    weights: tuple[float, ...]
    ends: tuple[int, ...]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    split: Split
    notes: tuple[str, ...]
    pixels: PixelFormat
    targets: NDArray[np.bool_] | None = None
    groups: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return self.ends[-1]

    def load(self, index: int) -> Any:
        """Read the image; raises BrokenImage with its path and the reason."""
        place, own = self.locate(index)
        return self.sources[place].load(own)

    def name(self, index: int) -> str:
        """Return the path of the image."""
        place, own = self.locate(index)
        return self.sources[place].name(own)

    def fetch_ahead(self, indices: Sequence[int]) -> None:
        """Begin to read those of the images that lie in a store."""
        own_indices: dict[int, list[int]] = {}
        for index in indices:
            place, own = self.locate(index)
            own_indices.setdefault(place, []).append(own)
        for place, own_of_place in own_indices.items():
            source = self.sources[place]
            if isinstance(source, StoredSource):
                source.fetch_ahead(own_of_place)

    def locate(self, index: int) -> tuple[int, int]:
        """Return the number of the source of an image, and the image's number there."""
        place = int(np.searchsorted(self.ends, index, side="right"))
        return place, index - self._find_first(place)

    def split_indices(self, indices: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Return for each source the places in ``indices`` (n,) at which its images stand."""
        places = np.searchsorted(self.ends, indices, side="right")
        return [np.flatnonzero(places == number) for number in range(len(self.sources))]

    def find_own_indices(self, place: int, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers that images of the source at ``place`` have there."""
        return indices - self._find_first(place)

    def repeat_by_weight(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return ``indices`` (n,) as often as the weights of their sources say."""
        repeated = []
        for place, rows in enumerate(self.split_indices(indices)):
            repeated.append(repeat_by_weight(indices[rows], self.weights[place], [_SEED, place]))
        return np.concatenate(repeated)

    def weigh_chances(self, indices: NDArray[np.int64], chances: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the ``chances`` (n,) of ``indices`` (n,) to be drawn, times the weights of their sources."""
        weighed = chances.copy()
        for place, rows in enumerate(self.split_indices(indices)):
            weighed[rows] *= self.weights[place]
        return weighed / weighed.sum()

    def _find_first(self, place: int) -> int:
        return self.ends[place - 1] if place else 0


def mix_sources(
    sources: Sequence[Source],
    names: Sequence[str],
    weights: Sequence[float],
    classes: tuple[str, ...],
    split: Split,
    pixels: PixelFormat,
) -> MixedSource:
    """Return ``sources``, called ``names``, as one source of the part ``split``, read for a model of ``pixels``.

    ``classes`` are those of all sources. There are labels if all sources have one class an image, and several labels if
    all have these.
    """
    targets = _join_targets(sources, classes)
    labels = None
    if all(source.labels is not None for source in sources):
        labels = np.concatenate([_renumber(source, classes) for source in sources])
    has_classes = labels is not None or targets is not None
    ends = np.cumsum([len(source) for source in sources]).tolist()
    notes = []
    for source, name, weight in zip(sources, names, weights, strict=True):
        notes.append(f"from {name}, weight {weight:g}: {len(source):,} images")
        notes += source.notes
    return MixedSource(
        tuple(sources),
        tuple(names),
        tuple(weights),
        tuple(ends),
        labels,
        classes if has_classes else (),
        split,
        tuple(notes),
        pixels,
        targets,
        _join_groups(sources),
    )


def _renumber(source: Source, classes: Sequence[str]) -> NDArray[np.int64]:
    assert source.labels is not None
    numbers = np.array([classes.index(name) for name in source.classes], np.int64)
    return numbers[source.labels]


def _join_targets(sources: Sequence[Source], classes: Sequence[str]) -> NDArray[np.bool_] | None:
    """Return the labels of all images, absent where a source does not know them; None unless all have several."""
    parts = []
    for source in sources:
        own = source.targets if isinstance(source, TableSource) else None
        if own is None:
            return None
        part = np.zeros((len(source), len(classes)), bool)
        part[:, [classes.index(name) for name in source.classes]] = own
        parts.append(part)
    return np.concatenate(parts)


def _join_groups(sources: Sequence[Source]) -> NDArray[np.int64] | None:
    """Return the groups of all images, those of each source by themselves; an image without one is a group alone."""
    parts: list[NDArray[np.int64]] = []
    has_groups = False
    first = 0
    for source in sources:
        own = source.groups if isinstance(source, TableSource) else None
        has_groups |= own is not None
        numbers = np.arange(len(source)) if own is None else np.unique(own, return_inverse=True)[1].ravel()
        parts.append(first + numbers)
        first += int(numbers.max()) + 1
    return np.concatenate(parts) if has_groups else None
