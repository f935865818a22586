"""Keep the images of some classes of a source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ehm.data.sources.base import FileSource, Source
from ehm.data.sources.idx import IdxSource
from ehm.data.sources.inventory import list_names
from ehm.data.sources.rows.source import RowSource
from ehm.data.sources.shards import ShardSource
from ehm.data.sources.table.source import TableSource
from ehm.errors import DataError

__all__ = ["select_classes"]


def select_classes(
    source: FileSource | IdxSource | RowSource | ShardSource, names: Sequence[str], source_name: str
) -> Source:
    """Return the images of the classes ``names`` alone, which are numbered in the order of the source.

    If an image may have several labels, all images are kept, and of their labels those of these names.
    Raises DataError if there are no labels, if a name is not among the classes, or if no image is of these classes;
    ``source_name`` names the source in it.
    """
    targets = source.targets if isinstance(source, TableSource) else None
    if source.labels is None and targets is None:
        raise DataError(f"data.classes: data.source {source_name} has no labels; leave data.classes out")
    for name in names:
        if name not in source.classes:
            raise DataError(
                f"data.classes: {name} is not among the {len(source.classes):,} classes of data.source {source_name} "
                f"({list_names(source.classes, most=10)})"
            )
    kept = [number for number, name in enumerate(source.classes) if name in names]
    if isinstance(source, TableSource) and targets is not None:
        # an image without any of these labels is one that shows their absence
        note = f"data.classes: {len(kept):,} of the {len(source.classes):,} labels"
        names_kept = tuple(source.classes[number] for number in kept)
        return replace(source, targets=targets[:, kept], classes=names_kept, notes=(*source.notes, note))
    new_numbers = np.full(len(source.classes), -1)
    new_numbers[kept] = np.arange(len(kept))
    labels = new_numbers[source.labels]
    indices = np.flatnonzero(labels >= 0)
    if not len(indices):
        raise DataError(f"data.classes: data.source {source_name} has no image of {list_names(names)} ({source.split})")
    classes = tuple(source.classes[number] for number in kept)
    selected = source.select(indices, labels[indices], classes)
    note = (
        f"data.classes: {len(classes):,} of the {len(source.classes):,} classes, "
        f"{len(indices):,} of {len(source):,} images"
    )
    return replace(selected, notes=(*source.notes, note))
