"""Images to search and images to search for, with the answers: revisited Oxford and Paris, or one's own folders.

    DIR/gnd_roxford5k.pkl   the published answers (Radenovic et al., 2018), or the same in JSON
        jpg/NAME.jpg
    DIR/queries/CLASS/...   an image of the database answers a query if it is of the same class;
        database/CLASS/...  or DIR/gnd.json says, in the form of the published answers
    DIR/CLASS/...           every image is sought among all others

Answers are a dictionary: ``imlist`` and ``qimlist``, the names of images and of queries, and ``gnd``, for each query a
dictionary of ``easy``, ``hard`` and ``junk``, numbers of images in ``imlist``, and ``bbx``, the box (left, top, right,
bottom) in pixels that the query is cut to.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.data.decoding.decode import decode_image, read_head
from ehm.data.decoding.depth import ValueRange
from ehm.data.decoding.orientation import Head, turn_boxes
from ehm.data.sources.base import Names, Split
from ehm.data.sources.folder import open_folder
from ehm.data.sources.parts import name_part, visible_folders
from ehm.errors import BrokenImage, DataError
from ehm.storage.reading import describe_value, read_json, shorten
from ehm.tasks.retrieval.pickled import read_pickle

__all__ = ["Answers", "Benchmark", "BenchmarkSource", "by_class", "open_benchmark", "read_answers"]

Box = tuple[float, float, float, float]
_KINDS = ("easy", "hard", "junk")


@dataclass(frozen=True)
class Answers:
    """What one query should find: positions in the database (n,) each. ``junk`` counts neither for nor against."""

    easy: NDArray[np.int64]
    hard: NDArray[np.int64]
    junk: NDArray[np.int64]


@dataclass(frozen=True)
class BenchmarkSource:
    """Implements :class:`ehm.data.Source`: queries, then the database; ``boxes`` by an image's number."""

    files: Names
    boxes: Mapping[int, Box]
    value_range: ValueRange = None

    labels: None = None
    classes: tuple[str, ...] = ()
    split: Split = "all"
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def load(self, index: int) -> Image.Image:
        """The image in RGB, or what its box holds of it, as it is seen; raises BrokenImage."""
        image = decode_image(self.files[index], value_range=self.value_range)
        return image.crop(cut) if (cut := self.cut(index, read_head(self.files[index]))) else image

    def cut(self, index: int, head: Head) -> tuple[int, int, int, int] | None:
        """Return the box of an image, of which the published ones are of stored pixels, in those of the image as seen.

        In whole pixels, and no larger than the image; None where it has no box. Raises BrokenImage where nothing is
        left.
        """
        box = self.boxes.get(index)
        if box is None:
            return None
        width, height = head.size
        left, top = (max(0, round(value)) for value in box[:2])
        right, bottom = min(width, round(box[2])), min(height, round(box[3]))
        if left >= right or top >= bottom:
            raise BrokenImage(f"{self.files[index]}: its box {list(box)} holds nothing of {width} x {height} pixels")
        seen = turn_boxes(np.array([[left, top, right, bottom]]), head.size, head.orientation)
        left, top, right, bottom = seen[0].tolist()
        return left, top, right, bottom

    def name(self, index: int) -> str:
        """The path of the file."""
        return self.files[index]


@dataclass(frozen=True)
class Benchmark:
    """Images of ``source`` that are sought (q,) and searched (m,), both numbers there, and ``answers`` of each query.

    ``revisited`` says whether the answers tell easy from hard.
    """

    source: BenchmarkSource
    queries: NDArray[np.int64]
    database: NDArray[np.int64]
    answers: tuple[Answers, ...]
    revisited: bool


def open_benchmark(place: str) -> Benchmark:
    """The benchmark at ``place``, a folder or the file with its answers; see the head of this module.

    Raises DataError that names the file and what is wrong with it: answers that are none, an image that is missing, a
    number that no image has, a box that holds nothing.
    """
    path = Path(place).expanduser()
    if path.is_file():
        return _revisited(path)
    if not path.is_dir():
        raise DataError(f"benchmark {place}: there is no such folder or file")
    found = sorted(file for file in path.glob("gnd*") if file.suffix in (".json", ".pkl"))
    if len(found) > 1:
        raise DataError(f"benchmark {place}: holds {found[0].name} and {found[1].name}; name one of them")
    if found:
        return _revisited(found[0])
    if (path / "queries").is_dir() and (path / "database").is_dir():
        return _folders(path)
    parts = [name for name in visible_folders(path) if name_part(name) is not None]
    if parts:
        raise DataError(
            f"benchmark {place}: {parts[0]}/ is named like a part of a data set and not like a class; name the folder "
            f"that holds the classes, for example benchmark={path / parts[0]}"
        )
    images = open_folder(str(path), "all", "classes")
    if images.labels is None:
        raise DataError(
            f"benchmark {place}: expected gnd_*.pkl or gnd.json, queries/ and database/, or a folder for each class"
        )
    source = BenchmarkSource(Names(images.name(index) for index in range(len(images))), {})
    return Benchmark(source, *_among_themselves(images.labels), revisited=False)


def by_class(labels: NDArray[np.int64], subset: NDArray[np.int64]) -> tuple[Any, Any, tuple[Answers, ...]]:
    """Queries, database and answers where each image of ``subset`` is sought among the others; ``labels`` are all."""
    queries, database, answers = _among_themselves(labels[subset])
    return subset[queries], subset[database], answers


def read_answers(file: Path) -> dict[str, Any]:
    """The published answers, in a pickle or in JSON; nothing in the file is executed. Raises DataError."""
    try:
        if file.suffix == ".json":
            content = read_json(file)
        else:
            with file.open("rb") as stream:
                content = read_pickle(stream)
    except _DAMAGED as error:
        raise DataError(f"{file}: cannot be read as answers: {shorten(str(error))}") from None
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in _SHAPE):
        raise DataError(f"{file}: expected a dictionary of the lists {', '.join(_SHAPE)}")
    if len(content["gnd"]) != len(content["qimlist"]):
        raise DataError(f"{file}: {len(content['qimlist'])} queries in qimlist, {len(content['gnd'])} in gnd")
    return content


_SHAPE = ("imlist", "qimlist", "gnd")
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


def _revisited(file: Path) -> Benchmark:
    content, root = read_answers(file), file.parent
    searched, sought = content["imlist"], content["qimlist"]
    if not searched or not sought:
        raise DataError(f"{file}: has no {'queries' if searched else 'images'}")
    files = [_image(root, "queries", name, file) for name in sought]
    files += [_image(root, "database", name, file) for name in searched]
    boxes: dict[int, Box] = {}
    answers = []
    for number, (name, entry) in enumerate(zip(sought, content["gnd"], strict=True)):
        where = f"{file}: query {name}"
        if not isinstance(entry, dict):
            raise DataError(f"{where}: expected a dictionary of {', '.join(_KINDS)} and bbx")
        answers.append(
            Answers(*(_positions(entry.get(kind, ()), len(searched), f"{where}: {kind}") for kind in _KINDS))
        )
        if entry.get("bbx") is not None:
            boxes[number] = _box(entry["bbx"], where)
    source = BenchmarkSource(Names(files), boxes)
    for number in boxes:
        try:
            head = read_head(files[number])
        except BrokenImage:
            continue  # the loader says what is wrong with the file
        try:
            source.cut(number, head)
        except BrokenImage as error:
            raise DataError(f"{file}: {error}") from None
    split = len(sought)
    return Benchmark(source, np.arange(split), np.arange(split, len(files)), tuple(answers), revisited=True)


def _image(root: Path, part: str, name: Any, answers: Path) -> str:
    """The file of an image: in ``jpg/`` as published, or in the folder of its part; the suffix may be left out."""
    for place in (root / part, root / "jpg", root):
        for file in (place / f"{name}", place / f"{name}.jpg"):
            if file.is_file():
                return str(file)
    raise DataError(f"{answers}: image {name} is not in {root / 'jpg'} or {root / part}")


def _positions(values: Any, images: int, where: str) -> NDArray[np.int64]:
    try:
        found = np.asarray(values).reshape(-1)
    except ValueError:
        found = np.array([""])
    if not len(found):
        return np.zeros(0, np.int64)
    if found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= images:
        raise DataError(
            f"{where}: expected numbers of images from 0 to {images - 1}, not {describe_value(found.tolist()[:5])}"
        )
    return found.astype(np.int64)


def _box(values: Any, where: str) -> Box:
    try:
        left, top, right, bottom = (float(value) for value in values)
    except (TypeError, ValueError, OverflowError):
        shown = describe_value(values)
        raise DataError(f"{where}: bbx: expected left, top, right, bottom, not {shown}") from None
    if not all(map(math.isfinite, (left, top, right, bottom))):
        raise DataError(f"{where}: bbx: is not finite: {describe_value(values)}")
    return left, top, right, bottom


def _folders(root: Path) -> Benchmark:
    """``queries/`` and ``database/`` with folders of the same names."""
    parts = [open_folder(str(root / part), "all", "classes") for part in ("queries", "database")]
    classes: list[list[str]] = []
    for part, images in zip(("queries", "database"), parts, strict=True):
        names = [Path(images.files[index]).parts for index in range(len(images))]
        if any(len(name) < 2 for name in names):
            raise DataError(f"benchmark {root}: {part}/ has images outside of class folders, and there is no gnd.json")
        classes.append([name[0] for name in names])
    absent = sorted(set(classes[0]) - set(classes[1]))
    if absent:
        raise DataError(f"benchmark {root}: queries/{absent[0]} has no folder of that name in database/")
    files = [images.name(index) for images in parts for index in range(len(images))]
    none, searched = np.zeros(0, np.int64), np.array(classes[1])
    answers = tuple(Answers(np.flatnonzero(searched == name), none, none) for name in classes[0])
    split = len(parts[0])
    source = BenchmarkSource(Names(files), {})
    return Benchmark(source, np.arange(split), np.arange(split, len(files)), answers, revisited=False)


def _among_themselves(
    labels: NDArray[np.int64] | Sequence[int],
) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[Answers, ...]]:
    """Every image sought among all; it is junk to itself."""
    numbers, labels, none = np.arange(len(labels)), np.asarray(labels), np.zeros(0, np.int64)
    members = {label: np.flatnonzero(labels == label) for label in np.unique(labels).tolist()}
    answers = []
    for number, label in enumerate(labels.tolist()):
        alike = members[label]
        answers.append(Answers(alike[alike != number], none, np.array([number])))
    return numbers, numbers, tuple(answers)
