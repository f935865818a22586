"""The classes of a source: count how often each occurs in the training images, and compare them with a model's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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

__all__ = [
    "count_labels",
    "count_objects",
    "count_targets",
    "describe_counts",
    "describe_masks",
    "number_classes",
    "require_known_classes",
]

LISTED = 12
"""Classes that are listed one by one, at most; if there are more, only the rarest are listed."""
RAREST = 5
"""Rarest classes that are listed then."""
_SHOWN_CLASSES = 5
ALLOW = "data.allow_empty_classes=true trains without them"
"""The end of messages about classes without any image."""


def require_known_classes(classes: Sequence[str], known: Sequence[str], source_name: str, model: str) -> None:
    """Raise DataError if a model, for example a "classifier", that knows some classes does not know all ``classes``."""
    unknown = [name for name in classes if name not in known]
    if unknown:
        more = ", …" if len(known) > _SHOWN_CLASSES else ""
        raise DataError(
            f"data.source {source_name}: class {unknown[0]} is not among the {model}'s {len(known)} "
            f"({', '.join(known[:_SHOWN_CLASSES])}{more})"
        )


def number_classes(classes: Sequence[str], known: Sequence[str], source_name: str, model: str) -> NDArray[np.int64]:
    """Return the number that the model gives to each of a source's ``classes``; DataError if it lacks one of them."""
    require_known_classes(classes, known, source_name, model)
    return np.array(list(map(known.index, classes)), dtype=np.int64)


def count_labels(train: Subset[Any], config: SourceConfig, trained: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return lines on how many images of each class ``train`` has; DataError if a named class has none.

    ``trained`` are the classes to learn, by default all of the source. Classes of shards are numbers and have no names:
    if one has no images, this is not an error, and a line says so.
    """
    source = train.source
    classes = source.classes if trained is None else tuple(trained)
    count_of = dict(zip(source.classes, np.bincount(train.labels, minlength=len(source.classes)), strict=True))
    counts = np.array([count_of[name] for name in classes], np.int64)
    if isinstance(source, FileSource):  # its classes have names, from folders or from a table
        if source.empty_classes and not config.allow_empty_classes:
            names = list_names([f"{name}/" for name in source.empty_classes])
            raise DataError(
                f"data.source {config.source}: {names} beside the classes without any image that is read; add images "
                f"or remove the folder; {ALLOW}"
            )
        _require_every_class(classes, counts, "image", train, config)
    return _describe_all("images of each class to train on", classes, counts)


def count_targets(
    train: Subset[Any], targets: NDArray[np.bool_], config: SourceConfig, classes: Sequence[str]
) -> tuple[str, ...]:
    """Return lines on how many training images have each label; DataError if a label occurs in none of them.

    ``targets`` (n, C) are the labels of all images of the source.
    """
    counts = targets[train.indices].sum(axis=0)
    _require_every_class(classes, counts, "image", train, config)
    return _describe_all("images with each label to train on", classes, counts)


def count_objects(train: Subset[CocoSource], config: SourceConfig) -> tuple[str, ...]:
    """Return lines on how many objects of each class ``train`` has to learn from; DataError if a class has none."""
    source = train.source
    counts = np.zeros(len(source.classes), np.int64)
    for index in train.indices.tolist():
        for row in source.list_trainable_objects(index):  # without crowds and boxes without area
            counts[source.numbers[row["category_id"]]] += 1
    _require_every_class(source.classes, counts, "object", train, config)
    return _describe_all("objects of each class to train on", source.classes, counts)


def describe_masks(
    train: Subset[PairSource], train_counts: MaskCounts, classes: Sequence[str], config: SourceConfig
) -> tuple[str, ...]:
    """Return lines on the number of images of each class and its share of the pixels; DataError if a class has none.

    It is not an error for ADE20K, whose classes are fixed by the benchmark, nor for classes that have no names.
    """
    source = train.source
    pixels = train_counts.pixels[: len(classes)]
    # masks that ignore 0 are ADE20K's: a part of its images need not have all of the benchmark's 150 classes
    if source.named and not source.zero_ignored:
        _require_every_class(classes, pixels, "pixel", train, config)
    total = max(1, int(train_counts.pixels.sum()))  # masks may ignore all pixels
    shares = []
    for number, name in enumerate(classes):
        shares.append(f"{escape_unprintable(name)} {train_counts.masks[number]:,}, {pixels[number] / total:.2%}")
    title = "images with each class to train on, and its share of the pixels"
    if len(classes) <= LISTED:
        lines = [f"{title}: {'; '.join(shares)}"]
    else:
        lines = [f"{title}: the rarest are {'; '.join(_select_rarest(shares, pixels))}"]
    absent = _find_absent(classes, pixels)
    if absent:
        lines.append(f"classes without a pixel to train on: {len(absent):,} ({list_names(absent)})")
    if train_counts.masks[IGNORED]:
        share = train_counts.pixels[IGNORED] / total
        lines.append(f"ignored: {share:.2%} of the pixels, in {train_counts.masks[IGNORED]:,} images")
    return tuple(lines)


def describe_counts(classes: Sequence[str], counts: Sequence[int]) -> str:
    """Return the count of each class; if there are many classes, the range of counts and the rarest classes."""
    each = []
    for name, count in zip(classes, counts, strict=True):
        each.append(f"{escape_unprintable(name)} {count:,}")
    if len(classes) <= LISTED:
        return ", ".join(each)
    rarest = ", ".join(_select_rarest(each, np.array(counts)))
    return f"{min(counts):,} to {max(counts):,} (the rarest: {rarest})"


def _select_rarest(texts: Sequence[str], counts: NDArray[np.int64]) -> list[str]:
    # stable, so that of equally rare classes the first ones are taken
    rarest = np.argsort(counts, kind="stable")[:RAREST].tolist()
    return [texts[number] for number in rarest]


def _describe_all(title: str, classes: Sequence[str], counts: NDArray[np.int64]) -> tuple[str, ...]:
    lines = [f"{title}: {describe_counts(classes, counts.tolist())}"]
    absent = _find_absent(classes, counts)
    if absent:
        lines.append(f"classes that never occur: {len(absent):,} ({list_names(absent)})")
    return tuple(lines)


def _find_absent(classes: Sequence[str], counts: NDArray[np.int64]) -> list[str]:
    return [name for name, count in zip(classes, counts.tolist(), strict=True) if not count]


def _require_every_class(
    classes: Sequence[str],
    counts: NDArray[np.int64],
    unit: str,
    train: Subset[Any],
    config: SourceConfig,
) -> None:
    """Raise DataError if a named class has nothing to learn from: the network would never predict it."""
    absent = _find_absent(classes, counts)
    if not absent or config.allow_empty_classes:
        return
    several = "classes" if len(absent) > 1 else "class"
    # all images of a rare class may be in the held-out fold
    held_out = "; they may all be in the fold that is held out" if train.selected is not None else ""
    raise DataError(
        f"data.source {config.source}: {several} {list_names(absent)} without any {unit} to train on ({train.title})"
        f"{held_out}; add some or remove the name; {ALLOW}"
    )
