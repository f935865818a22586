"""The classes of a source: how often each occurs in what is trained on, and whether a model knows it."""

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
"""Classes that are listed one by one; of more, only the rarest are."""
RAREST = 5
_SHOWN_CLASSES = 5
ALLOW = "data.allow_empty_classes=true trains without them"


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
    """Return the model's number of each of a source's ``classes``, matched by name; DataError if it misses one."""
    require_known_classes(classes, known, source_name, model)
    return np.array(list(map(known.index, classes)), dtype=np.int64)


def count_labels(train: Subset[Any], config: SourceConfig, trained: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return lines that say how many images of each class ``train`` has; DataError if a named class has none.

    ``trained`` are the classes that are to be learnt, by default all of the source. Classes that are numbers (of
    shards) have no names, and may be missing: a line says so.
    """
    source = train.source
    classes = source.classes if trained is None else tuple(trained)
    count_of = dict(zip(source.classes, np.bincount(train.labels, minlength=len(source.classes)), strict=True))
    counts = np.array([count_of[name] for name in classes], np.int64)
    if isinstance(source, FileSource):  # somebody has named its classes, by folders or in a table
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
    """Return lines that say how many images to train on have each label; DataError if none has one of them.

    ``targets`` (n, C) are those of all images of the source.
    """
    counts = targets[train.indices].sum(axis=0)
    _require_every_class(classes, counts, "image", train, config)
    return _describe_all("images with each label to train on", classes, counts)


def count_objects(train: Subset[CocoSource], config: SourceConfig) -> tuple[str, ...]:
    """Return lines that say how many objects of each class ``train`` has to learn from; DataError if one has none."""
    source = train.source
    counts = np.zeros(len(source.classes), np.int64)
    for index in train.indices.tolist():
        for row in source.trainable_objects(index):  # crowds and boxes without area teach nothing
            counts[source.numbers[row["category_id"]]] += 1
    _require_every_class(source.classes, counts, "object", train, config)
    return _describe_all("objects of each class to train on", source.classes, counts)


def describe_masks(
    train: Subset[PairSource], train_counts: MaskCounts, classes: Sequence[str], config: SourceConfig
) -> tuple[str, ...]:
    """Return lines with the images that each class is in and its share of the pixels; DataError if one has none.

    ADE20K's classes are those of the benchmark, and classes without names are numbers: these may be missing.
    """
    source = train.source
    pixels = train_counts.pixels[: len(classes)]
    # ADE20K ignores 0, and its 150 classes are the benchmark's, whatever a part of its images holds
    if source.named and not source.zero_ignored:
        _require_every_class(classes, pixels, "pixel", train, config)
    total = max(1, int(train_counts.pixels.sum()))  # 1 for masks that ignore everything
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
    """Return the count of each class, or of many classes the range and the rarest."""
    each = []
    for name, count in zip(classes, counts, strict=True):
        each.append(f"{escape_unprintable(name)} {count:,}")
    if len(classes) <= LISTED:
        return ", ".join(each)
    rarest = ", ".join(_select_rarest(each, np.array(counts)))
    return f"{min(counts):,} to {max(counts):,} (the rarest: {rarest})"


def _select_rarest(texts: Sequence[str], counts: NDArray[np.int64]) -> list[str]:
    # stable: of equally rare classes the first ones are taken
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
    what: str,
    train: Subset[Any],
    config: SourceConfig,
) -> None:
    """Raise DataError if a class that somebody named has nothing to learn from; the network would never answer it."""
    absent = _find_absent(classes, counts)
    if not absent or config.allow_empty_classes:
        return
    several = "classes" if len(absent) > 1 else "class"
    # a rare class may lie in the fold alone, in which case another fold would do
    held_out = "; what is held out (fold) may hold them" if train.selected is not None else ""
    raise DataError(
        f"data.source {config.source}: {several} {list_names(absent)} without any {what} to train on ({train.title})"
        f"{held_out}; add some or remove the name; {ALLOW}"
    )
