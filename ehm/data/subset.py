"""The images of a source that are trained on, or measured on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ehm.data.sources.base import FileSource, Source
from ehm.data.sources.mixture import MixedSource
from ehm.data.sources.table.source import TableSource
from ehm.errors import DataError

__all__ = ["Subset", "find_groups", "find_targets", "require_labels"]

S_co = TypeVar("S_co", bound=Source, covariant=True)


@dataclass(frozen=True)
class Subset(Generic[S_co]):
    """The images of ``source`` at the ``selected`` indices, all if None; ``title`` says which they are."""

    source: S_co
    selected: NDArray[np.int64] | None
    title: str

    def __len__(self) -> int:
        return len(self.source) if self.selected is None else len(self.selected)

    @property
    def indices(self) -> NDArray[np.int64]:
        """The indices of its images in ``source``: (n,)."""
        return np.arange(len(self.source)) if self.selected is None else self.selected

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class numbers of its images: (n,)."""
        return require_labels(self.source, self.title)[self.indices]


def find_targets(source: Source) -> NDArray[np.bool_] | None:
    """Return which labels each image of ``source`` has, (n, C), if it may have several; None if it has one class."""
    return source.targets if isinstance(source, TableSource | MixedSource) else None


def find_groups(source: Source) -> NDArray[np.int64] | None:
    """Return the group of each image of ``source``, (n,), that is not split into folds; None if there are no groups."""
    return source.groups if isinstance(source, TableSource | MixedSource) else None


def require_labels(source: Source, name: str) -> NDArray[np.int64]:
    """Return the labels of all images of a source; raises DataError if it has none or several, or only one class."""
    if find_targets(source) is not None:
        raise DataError(
            f"data.source {name}: has several labels an image, and one class each is needed here; data.columns.label "
            "names a column of classes"
        )
    if source.labels is None:
        raise DataError(f"data.source {name}: has no labels: {_explain_missing_labels(source)}")
    if len(source.classes) < 2:
        raise DataError(
            f"data.source {name}: has one class only ({source.classes[0]}); a classifier needs two at least"
        )
    return source.labels


def _explain_missing_labels(source: Source) -> str:
    """Say what keeps the folders of a source from being classes, and what to do about it."""
    if isinstance(source, MixedSource):
        lacking = [name for name, each in zip(source.names, source.sources, strict=True) if each.labels is None]
        return f"of its sources, {lacking[0]} has none, or not one class an image as the others"
    if isinstance(source, TableSource):
        return "data.columns.label names the column that has them, in every row"
    remedy = "put each class's images into a folder of its own"
    if not isinstance(source, FileSource):
        return remedy
    files = [source.files[index] for index in range(len(source))]
    # the folders of classes may lie below one of a part, for example train
    common = os.path.commonpath([os.path.dirname(file) for file in files])
    if common:
        files = [os.path.relpath(file, common) for file in files]
    loose = [file for file in files if os.sep not in file]
    if len(loose) == len(files):
        return f"all of its images lie in one folder, {source.root / common}; {remedy}"
    if loose:
        first_folder = next(file for file in files if os.sep in file).partition(os.sep)[0]
        more = f" and {len(loose) - 1} more images lie" if len(loose) > 1 else " lies"
        return f"{loose[0]}{more} beside the folder {first_folder}; move what has no class away, or {remedy}"
    return remedy
