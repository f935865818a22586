"""Benchmarks of retrieval: queries, a database and the right answers, of revisited Oxford and Paris or one's own.

    DIR/gnd_roxford5k.pkl   the published answers (Radenovic et al., 2018), or the same in JSON
        jpg/NAME.jpg
    DIR/queries/CLASS/...   a query should find the images of its class in the database, unless there is
        database/CLASS/...  DIR/gnd.json with answers in the published form
    DIR/CLASS/...           every image is a query to all others

Answers are a dictionary: ``imlist`` and ``qimlist``, the names of images and of queries, and ``gnd``, for each query a
dictionary of ``easy``, ``hard`` and ``junk``, numbers of images in ``imlist``, and ``bbx``, the box (left, top, right,
bottom) in pixels that the query is cut to.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from ehm.data.sources.parts import list_visible_folders, name_part
from ehm.errors import BrokenImage, DataError
from ehm.tasks.retrieval.answers import (
    ANSWER_KINDS,
    NO_IMAGES,
    Answers,
    Box,
    make_answers_by_class,
    read_answers,
    read_box,
    read_positions,
)

__all__ = ["Benchmark", "BenchmarkSource", "open_benchmark"]


@dataclass(frozen=True)
class BenchmarkSource:
    """The images of a benchmark: the queries, then the database; ``boxes`` are the regions of queries by index."""

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
        """Return the image in RGB, turned upright and cropped to its box if it has one; raises BrokenImage."""
        image = decode_image(self.files[index], value_range=self.value_range)
        box = self.find_box(index, read_head(self.files[index]))
        if box is None:
            return image
        return image.crop(box)

    def find_box(self, index: int, head: Head) -> tuple[int, int, int, int] | None:
        """Return the box of an image in whole pixels of the upright image, or None if it has none.

        Published boxes are in stored pixels, before EXIF turns the image, and may extend beyond it. Raises BrokenImage
        if a box is completely outside of the image.
        """
        box = self.boxes.get(index)
        if box is None:
            return None
        width, height = head.size
        left = max(0, round(box[0]))
        top = max(0, round(box[1]))
        right = min(width, round(box[2]))
        bottom = min(height, round(box[3]))
        if left >= right or top >= bottom:
            raise BrokenImage(f"{self.files[index]}: its box {list(box)} holds nothing of {width} x {height} pixels")
        seen = turn_boxes(np.array([[left, top, right, bottom]]), head.size, head.orientation)
        left, top, right, bottom = seen[0].tolist()
        return left, top, right, bottom

    def name(self, index: int) -> str:
        """Return the path of the file."""
        return self.files[index]


@dataclass(frozen=True)
class Benchmark:
    """A published benchmark, or one's own: ``queries`` (q,) and ``database`` (m,) are image indices into ``source``.

    ``answers`` are the images that each query should find; ``revisited`` is true if they are divided into easy and
    hard ones.
    """

    source: BenchmarkSource
    queries: NDArray[np.int64]
    database: NDArray[np.int64]
    answers: tuple[Answers, ...]
    revisited: bool


def open_benchmark(location: str) -> Benchmark:
    """Open the benchmark at ``location``, a folder as described at the top of this file, or the file with its answers.

    Raises DataError, which names the file, for answers that cannot be read, a missing image, a number that no image
    has, or an empty box.
    """
    path = Path(location).expanduser()
    if path.is_file():
        return _open_revisited(path)
    if not path.is_dir():
        raise DataError(f"benchmark {location}: there is no such folder or file")
    found = sorted([*path.glob("gnd*.json"), *path.glob("gnd*.pkl")])
    if len(found) > 1:
        raise DataError(f"benchmark {location}: holds {found[0].name} and {found[1].name}; name one of them")
    if found:
        return _open_revisited(found[0])
    if (path / "queries").is_dir() and (path / "database").is_dir():
        return _open_query_folders(path)
    parts = [name for name in list_visible_folders(path) if name_part(name) is not None]
    if parts:
        raise DataError(
            f"benchmark {location}: {parts[0]}/ is named like a part of a data set and not like a class; name the "
            f"folder that holds the classes, for example benchmark={path / parts[0]}"
        )
    images = open_folder(str(path), "all", "classes")
    if images.labels is None:
        raise DataError(
            f"benchmark {location}: expected gnd_*.pkl or gnd.json, queries/ and database/, or a folder for each class"
        )
    source = BenchmarkSource(Names(map(images.name, range(len(images)))), {})
    queries, database, answers = make_answers_by_class(images.labels, np.arange(len(images)))
    return Benchmark(source, queries, database, answers, revisited=False)


def _open_revisited(file: Path) -> Benchmark:
    """Open a benchmark whose answers are in ``file``, beside the folder of its images."""
    content = read_answers(file)
    database = content["imlist"]
    queries = content["qimlist"]
    if not database or not queries:
        raise DataError(f"{file}: has no {'queries' if database else 'images'}")
    # queries come first, so that the number of a query is the index of its box
    files = [_find_image(file.parent, "queries", name, file) for name in queries]
    files += [_find_image(file.parent, "database", name, file) for name in database]
    boxes: dict[int, Box] = {}
    answers = []
    for number, (name, entry) in enumerate(zip(queries, content["gnd"], strict=True)):
        where = f"{file}: query {name}"
        if not isinstance(entry, dict):
            raise DataError(f"{where}: expected a dictionary of {', '.join(ANSWER_KINDS)} and bbx")
        positions = []
        for kind in ANSWER_KINDS:
            positions.append(read_positions(entry.get(kind, ()), len(database), f"{where}: {kind}"))
        answers.append(Answers(*positions))
        if entry.get("bbx") is not None:
            boxes[number] = read_box(entry["bbx"], where)
    source = BenchmarkSource(Names(files), boxes)
    _check_boxes(source, file)
    first = len(queries)
    return Benchmark(source, np.arange(first), np.arange(first, len(files)), tuple(answers), revisited=True)


def _check_boxes(source: BenchmarkSource, answers: Path) -> None:
    """Raise DataError if a box is outside of its image, before anything is computed."""
    for number in source.boxes:
        # the head of the file is enough, because it has the size and the orientation
        try:
            head = read_head(source.files[number])
        except BrokenImage:
            continue  # the loader reports files that cannot be read
        try:
            source.find_box(number, head)
        except BrokenImage as error:
            raise DataError(f"{answers}: {error}") from None


def _find_image(root: Path, part: str, name: Any, answers: Path) -> str:
    """Return the file of an image, in ``jpg/`` or in the folder of its part; ``name`` may lack the suffix ``.jpg``."""
    for folder_path in (root / part, root / "jpg", root):
        for file in (folder_path / f"{name}", folder_path / f"{name}.jpg"):
            if file.is_file():
                return str(file)
    raise DataError(f"{answers}: image {name} is not in {root / 'jpg'} or {root / part}")


def _open_query_folders(root: Path) -> Benchmark:
    """Open ``queries/`` and ``database/``, which have a folder for each class, with the same names in both."""
    queries, query_classes = _read_class_folders(root, "queries")
    database, database_classes = _read_class_folders(root, "database")
    absent = sorted(set(query_classes) - set(database_classes))
    if absent:
        raise DataError(f"benchmark {root}: queries/{absent[0]} has no folder of that name in database/")
    classes = np.array(database_classes)
    answers = []
    for name in query_classes:
        answers.append(Answers(np.flatnonzero(classes == name), NO_IMAGES, NO_IMAGES))
    first = len(queries)
    files = queries + database
    source = BenchmarkSource(Names(files), {})
    return Benchmark(source, np.arange(first), np.arange(first, len(files)), tuple(answers), revisited=False)


def _read_class_folders(root: Path, part: str) -> tuple[list[str], list[str]]:
    """Return the files of a part of a benchmark, and the class folder of each."""
    images = open_folder(str(root / part), "all", "classes")
    files = []
    classes = []
    for index in range(len(images)):
        parts = Path(images.files[index]).parts
        if len(parts) < 2:
            raise DataError(f"benchmark {root}: {part}/ has images outside of class folders, and there is no gnd.json")
        files.append(images.name(index))
        classes.append(parts[0])
    return files, classes
