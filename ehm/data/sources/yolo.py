"""Images with objects in YOLO's text files: a line for each object, in shares of the width and height of the image.

    class centre_x centre_y width height        a box
    class x1 y1 x2 y2 x3 y3 ...                 a polygon of three points at least

The file of ``images/a/1.jpg`` is ``labels/a/1.txt``; an image without one has no objects. What is read becomes a source
in COCO's format, whose boxes are in pixels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ehm.config import DetectionData
from ehm.data.decoding.decode import read_head
from ehm.data.decoding.orientation import Annotated
from ehm.data.sources.base import MOST_CLASSES, Split
from ehm.data.sources.coco import CocoSource
from ehm.data.sources.inventory import Unused, describe_layout, describe_parts
from ehm.data.sources.parts import Part, no_validation_part
from ehm.data.sources.yolo_layouts import find_yolo
from ehm.data.threads import map_in_threads
from ehm.errors import BrokenImage, DataError
from ehm.storage.names import escape_undecodable
from ehm.storage.reading import read_text, shorten

__all__ = ["find_label_file", "open_yolo", "read_label_file"]

_SLACK = 1e-3
"""The share of the image that a coordinate may lie outside of it, as tools write rounded numbers."""

Row = tuple[int, list[float]]
"""An object: its class, and four numbers of a box or those of a polygon, as shares of the image."""


def open_yolo(config: DetectionData, split: Split, masks: bool = True) -> CocoSource:
    """Open the part ``split`` of ``config.source``, as :func:`ehm.data.sources.yolo_layouts.find_yolo` finds it.

    If there is no validation part, "train" gives all that there is and "val" raises. The test part is never read. Boxes
    refer to images as they are seen, unless ``config.annotated`` says otherwise. Raises DataError that names the file
    and the line if it is no object, if its class has no name, or if ``masks`` are wanted and it is a box.
    """
    found = find_yolo(config.source)
    if split == "val" and "val" not in found.images:
        raise no_validation_part(config.source)
    if "val" not in found.images:
        split = "all"
    wanted: list[Part] = ["train", "val"] if split == "all" else [split]
    files: list[str] = []
    for part in wanted:
        files += found.images.get(part, ())
    annotated: Annotated = "stored" if config.annotated == "stored" else "upright"
    unused = Unused()
    records: list[dict[str, Any]] = []
    annotations: list[tuple[dict[str, Any], ...]] = []
    unusable: list[str] = []
    sizes = map_in_threads(partial(_read_size, annotated), files, config.workers)
    for file, size in zip(files, sizes, strict=True):
        if size is None:
            unused.add("that cannot be read", file)
            continue
        rows = read_label_file(find_label_file(Path(file)), len(found.classes), masks)
        width, height = size
        number = len(records)
        name = os.path.relpath(file, found.root)
        records.append({"id": number, "file_name": name, "width": width, "height": height})
        objects = tuple(_describe_object(number, row, width, height) for row in rows)
        annotations.append(objects)
        for each in objects:
            if min(each["bbox"][2:]) <= 0:
                unusable.append(f"an object of {file}: its box {each['bbox']} has no area")
    if not records:
        raise DataError(f"data.source {config.source}: has no images in YOLO's layout that can be read")
    classes = found.classes or _number_classes(found.images)
    if not classes:
        raise DataError(f"data.source {config.source}: none of its label files has an object")
    counts: dict[str, int] = {part: len(images) for part, images in found.images.items()}
    notes = [describe_layout(found.description, list(counts) if len(counts) > 1 else (), len(classes))]
    if len(counts) > 1:
        notes.append(describe_parts(counts, ["test"] if "test" in counts else []))
    if unused:
        notes.append(unused.describe())
    return CocoSource(
        found.root,
        tuple(records),
        tuple(annotations),
        tuple(map(escape_undecodable, classes)),
        {number: number for number in range(len(classes))},
        split,
        tuple(unusable),
        masks,
        tuple(notes),
        annotated,
        config.range,
    )


def find_label_file(image: Path) -> Path:
    """Return the text file of an image: in ``labels/`` in place of the last ``images/`` of its path, or beside it."""
    parts = list(image.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def read_label_file(file: Path, classes: int, masks: bool) -> list[Row]:
    """Return the objects in a label file, none if it is not there; ``classes`` is the number of names, 0 if unknown.

    Raises DataError that names the line if it is no object, or a box where ``masks`` are wanted.
    """
    if not file.is_file():
        return []
    rows = []
    for line, text in enumerate(read_text(file).splitlines(), start=1):
        words = text.split()
        if not words:
            continue
        place = f"{file}: line {line}"
        try:
            number = int(words[0])
            values = list(map(float, words[1:]))
        except ValueError:
            raise DataError(f"{place}: {shorten(text)} is no object: a class number and shares of the image") from None
        is_polygon = len(values) >= 6 and len(values) % 2 == 0
        if number < 0 or not (len(values) == 4 or is_polygon):
            raise DataError(
                f"{place}: expected a class, and four numbers of a box or x y of three points at least, not "
                f"{shorten(text)}"
            )
        if classes and number >= classes:
            raise DataError(f"{place}: class {number} has no name; there are {classes}, from 0 to {classes - 1}")
        if number >= MOST_CLASSES:
            raise DataError(f"{place}: {number:,} is no number of a class")
        if not all(-_SLACK <= value <= 1 + _SLACK for value in values):
            raise DataError(f"{place}: {shorten(text)}: coordinates should be shares of the image, from 0 to 1")
        if masks and not is_polygon:
            raise DataError(f"{place}: is a box and has no mask; masks=false trains on boxes alone")
        rows.append((number, values))
    return rows


def _number_classes(images: Mapping[Part, Sequence[str]]) -> tuple[str, ...]:
    """Return numbers as the names of the classes, as many as the label files of all parts that are read have."""
    largest = -1
    for part, files in images.items():
        if part == "test":
            continue
        for file in files:
            rows = read_label_file(find_label_file(Path(file)), 0, masks=False)
            largest = max([largest, *(number for number, _ in rows)])
    return tuple(map(str, range(largest + 1)))


def _describe_object(image: int, row: Row, width: int, height: int) -> dict[str, Any]:
    """Return an object in COCO's form, in pixels of an image of ``width`` x ``height``."""
    number, values = row
    described: dict[str, Any] = {"image_id": image, "category_id": number, "iscrowd": 0}
    if len(values) == 4:
        centre_x, centre_y, across, down = values
        left = (centre_x - across / 2) * width
        top = (centre_y - down / 2) * height
        return {**described, "bbox": [left, top, across * width, down * height]}
    xs = [value * width for value in values[0::2]]
    ys = [value * height for value in values[1::2]]
    polygon: list[float] = []
    for point in zip(xs, ys, strict=True):
        polygon += point
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    return {**described, "bbox": box, "segmentation": [polygon]}


def _read_size(annotated: Annotated, file: str) -> tuple[int, int] | None:
    """Return the width and height of an image as its annotation sees it; None if it cannot be read."""
    try:
        head = read_head(file)
    except BrokenImage:
        return None
    return head.size if annotated == "stored" else head.seen_size
