"""The right answers of a benchmark: the images that each query should find, read from its files."""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.errors import DataError
from ehm.storage.reading import describe_value, read_json, shorten
from ehm.tasks.retrieval.pickled import read_pickle

__all__ = [
    "ANSWER_KINDS",
    "NO_IMAGES",
    "Answers",
    "Box",
    "make_answers_by_class",
    "read_answers",
    "read_box",
    "read_positions",
]

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""
ANSWER_KINDS = ("easy", "hard", "junk")
_LISTS = ("imlist", "qimlist", "gnd")
_DAMAGED = (
    pickle.UnpicklingError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    MemoryError,
    RecursionError,
)
"""Errors that a damaged pickle may raise."""
NO_IMAGES = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Answers:
    """The images that a query should find: positions in the database (n,); ``junk`` counts neither for nor against."""

    easy: NDArray[np.int64]
    hard: NDArray[np.int64]
    junk: NDArray[np.int64]


def make_answers_by_class(
    labels: NDArray[np.int64], subset: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[Answers, ...]]:
    """Return queries, database and answers for a search in which each image of ``subset`` should find its class.

    ``labels`` are the classes of all images; queries and database are indices of images, and both are ``subset``.
    """
    labels = labels[subset]
    members = {}
    for label in np.unique(labels).tolist():
        members[label] = np.flatnonzero(labels == label)
    answers = []
    for position, label in enumerate(labels.tolist()):
        alike = members[label]
        # The query itself is junk: it is in the database too, and would always be found first.
        answers.append(Answers(alike[alike != position], NO_IMAGES, np.array([position])))
    return subset, subset, tuple(answers)


def read_answers(file: Path) -> dict[str, Any]:
    """Read the published answers, in a pickle or in JSON; nothing in the file is executed. Raises DataError."""
    try:
        if file.suffix == ".json":
            content = read_json(file)
        else:
            with file.open("rb") as stream:
                content = read_pickle(stream)
    except _DAMAGED as error:
        raise DataError(f"{file}: cannot be read as answers: {shorten(str(error))}") from None
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in _LISTS):
        raise DataError(f"{file}: expected a dictionary of the lists {', '.join(_LISTS)}")
    if len(content["gnd"]) != len(content["qimlist"]):
        raise DataError(f"{file}: {len(content['qimlist'])} queries in qimlist, {len(content['gnd'])} in gnd")
    return content


def read_positions(values: Any, images: int, where: str) -> NDArray[np.int64]:
    """Return positions among ``images`` images; raises DataError that begins with ``where``."""
    try:
        found = np.asarray(values).reshape(-1)
    except ValueError:
        found = np.array([""])  # lists of several lengths, which are refused below
    if not len(found):
        return NO_IMAGES
    # booleans and floats would be converted to positions silently
    if found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= images:
        raise DataError(
            f"{where}: expected numbers of images from 0 to {images - 1}, not {describe_value(found.tolist()[:5])}"
        )
    return found.astype(np.int64)


def read_box(values: Any, where: str) -> Box:
    """Return a box in pixels; raises DataError that begins with ``where``."""
    try:
        left, top, right, bottom = map(float, values)
    except (TypeError, ValueError, OverflowError):
        shown = describe_value(values)
        raise DataError(f"{where}: bbx: expected left, top, right, bottom, not {shown}") from None
    if not all(map(math.isfinite, (left, top, right, bottom))):
        raise DataError(f"{where}: bbx: is not finite: {describe_value(values)}")
    return left, top, right, bottom
