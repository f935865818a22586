"""Say how often each class occurs in what is trained on, and stop if a class never does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ehm.config import SourceConfig
from ehm.data.sources.base import FileSource
from ehm.data.sources.coco import CocoSource
from ehm.data.sources.inventory import escape_unprintable, list_names
from ehm.data.sources.mask_counts import MaskCounts
from ehm.data.sources.masks import IGNORED
from ehm.data.sources.pairs import PairSource
from ehm.data.subset import Subset
from ehm.errors import DataError

__all__ = ["count_labels", "count_objects", "describe_masks", "describe_numbers"]

LISTED = 12
"""Classes that are listed one by one; of more, only the rarest are."""
RAREST = 5
ALLOW = "data.allow_empty_classes=true trains without them"


def count_labels(part: Subset, config: SourceConfig, trained: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return lines that say how many images of each class ``part`` has; DataError if a named class has none.

    ``trained`` are the classes that are to be learnt, by default all of the source. Classes that are numbers (of
    shards) have no names, and may be missing: a line says so.
    """
    source = part.source
    classes = source.classes if trained is None else tuple(trained)
    every = np.bincount(part.labels, minlength=len(source.classes))
    places = {name: number for number, name in enumerate(source.classes)}
    numbers = every[[places[name] for name in classes]]
    if isinstance(source, FileSource) and source.empty_classes and not config.allow_empty_classes:
        names = list_names([f"{name}/" for name in source.empty_classes])
        raise DataError(
            f"data.source {config.source}: {names} beside the classes without any image that is read; add images or "
            f"remove the folder; {ALLOW}"
        )
    named = isinstance(source, FileSource)
    _require_every_class(classes, numbers, named, "image", part, config)
    return _lines("images of each class to train on", classes, numbers)


def count_objects(part: Subset, config: SourceConfig) -> tuple[str, ...]:
    """Return lines that say how many objects of each class ``part`` has to learn from; DataError if one has none."""
    source = part.source
    assert isinstance(source, CocoSource)
    indices = range(len(source)) if part.selected is None else part.selected.tolist()
    labels = [source.numbers[each["category_id"]] for index in indices for each in source.trainable(index)]
    numbers = np.bincount(np.array(labels, np.int64), minlength=len(source.classes))
    _require_every_class(source.classes, numbers, True, "object", part, config)
    return _lines("objects of each class to train on", source.classes, numbers)


def describe_masks(
    train: Subset, train_counts: MaskCounts, classes: Sequence[str], config: SourceConfig
) -> tuple[str, ...]:
    """Return lines with the images that each class is in and its share of the pixels; DataError if one has none.

    ADE20K's classes are those of the benchmark, and classes without names are numbers: these may be missing.
    """
    source = train.source
    assert isinstance(source, PairSource)
    pixels = train_counts.pixels[: len(classes)]
    if not source.zero_ignored:
        _require_every_class(classes, pixels, source.named, "pixel", train, config)
    total = max(1, int(train_counts.pixels.sum()))
    shares = []
    for number, name in enumerate(classes):
        shares.append(f"{escape_unprintable(name)} {train_counts.masks[number]:,}, {pixels[number] / total:.2%}")
    title = "images with each class to train on, and its share of the pixels"
    if len(classes) <= LISTED:
        lines = [f"{title}: {'; '.join(shares)}"]
    else:
        rarest = np.argsort(pixels, kind="stable")[:RAREST]
        lines = [f"{title}: the rarest are {'; '.join(shares[number] for number in rarest.tolist())}"]
    absent = [name for name, count in zip(classes, pixels.tolist(), strict=True) if not count]
    if absent:
        lines.append(f"classes without a pixel to train on: {len(absent):,} ({list_names(absent)})")
    if train_counts.masks[IGNORED]:
        share = train_counts.pixels[IGNORED] / total
        lines.append(f"ignored: {share:.2%} of the pixels, in {train_counts.masks[IGNORED]:,} images")
    return tuple(lines)


def describe_numbers(classes: Sequence[str], numbers: Sequence[int]) -> str:
    """Return the number of each class, or of many classes the range and the rarest."""
    each = [f"{escape_unprintable(name)} {number:,}" for name, number in zip(classes, numbers, strict=True)]
    if len(classes) <= LISTED:
        return ", ".join(each)
    rarest = np.argsort(np.array(numbers), kind="stable")[:RAREST]
    names = ", ".join(each[number] for number in rarest.tolist())
    return f"{min(numbers):,} to {max(numbers):,} (the rarest: {names})"


def _lines(title: str, classes: Sequence[str], numbers: NDArray[np.int64]) -> tuple[str, ...]:
    lines = [f"{title}: {describe_numbers(classes, numbers.tolist())}"]
    absent = [name for name, number in zip(classes, numbers.tolist(), strict=True) if not number]
    if absent:
        lines.append(f"classes that never occur: {len(absent):,} ({list_names(absent)})")
    return tuple(lines)


def _require_every_class(
    classes: Sequence[str],
    numbers: NDArray[np.int64],
    named: bool,
    what: str,
    part: Subset,
    config: SourceConfig,
) -> None:
    """Raise DataError if a class that somebody named has nothing to learn from; the network would never answer it."""
    absent = [name for name, number in zip(classes, numbers.tolist(), strict=True) if not number]
    if not absent or not named or config.allow_empty_classes:
        return
    several = "classes" if len(absent) > 1 else "class"
    held_out = "; what is held out (fold) may hold them" if part.selected is not None else ""
    raise DataError(
        f"data.source {config.source}: {several} {list_names(absent)} without any {what} to train on ({part.title})"
        f"{held_out}; add some or remove the name; {ALLOW}"
    )
