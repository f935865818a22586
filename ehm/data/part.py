"""The part of a source that is trained on, or measured on."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ehm.data.sources.base import FileSource, Source
from ehm.errors import DataError

__all__ = ["Part", "labels_of"]


@dataclass(frozen=True)
class Part:
    """The images of ``source`` at ``subset``, all if None; ``title`` says which they are."""

    source: Source
    subset: NDArray[np.int64] | None
    title: str

    def __len__(self) -> int:
        return len(self.source) if self.subset is None else len(self.subset)

    @property
    def indices(self) -> NDArray[np.int64]:
        """Return the numbers of its images in ``source`` (n,)."""
        return np.arange(len(self.source)) if self.subset is None else self.subset

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class numbers (n,)."""
        labels = labels_of(self.source, self.title)
        return labels if self.subset is None else labels[self.subset]


def labels_of(source: Source, name: str) -> NDArray[np.int64]:
    """Labels of a source; raises DataError where it has none, or only one class."""
    if source.labels is None:
        raise DataError(f"data.source {name}: has no labels: {_explain_missing_labels(source)}")
    if len(source.classes) < 2:
        raise DataError(
            f"data.source {name}: has one class only ({source.classes[0]}); a classifier needs two at least"
        )
    return source.labels


def _explain_missing_labels(source: Source) -> str:
    """Say what keeps the folders of a source from being classes, and what to do about it."""
    remedy = "put each class's images into a folder of its own"
    if not isinstance(source, FileSource):
        return remedy
    files = [source.files[index] for index in range(len(source))]
    common = os.path.commonpath([os.path.dirname(file) for file in files])  # for example train
    inside = [os.path.relpath(file, common) if common else file for file in files]
    loose = [file for file in inside if os.sep not in file]
    if len(loose) == len(inside):
        return f"all of its images lie in one folder, {source.root / common}; {remedy}"
    if loose:
        first_folder = next(file for file in inside if os.sep in file).partition(os.sep)[0]
        more = f" and {len(loose) - 1} more images lie" if len(loose) > 1 else " lies"
        return f"{loose[0]}{more} beside the folder {first_folder}; move what has no class away, or {remedy}"
    return remedy
