"""The objects of annotations in COCO's format, by image and category."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ehm.config import QuestionSet
from ehm.data.sources.base import Split
from ehm.data.sources.coco import CocoSource, read_annotations
from ehm.data.sources.coco_layouts import Annotated, find_annotations, holds_annotations
from ehm.data.sources.questions.messages import QuestionPart
from ehm.data.sources.questions.objects import AnnotatedObjects, ObjectCounts
from ehm.errors import DataError

__all__ = ["holds_coco", "read_coco_objects"]

_FILE = re.compile(r"instances(?:_(.+))?\.json")


def holds_coco(root: Path) -> bool:
    """Return whether a folder has annotations in COCO's format, or is a file with a name as such files have."""
    if root.is_file():
        return _FILE.fullmatch(root.name) is not None
    return holds_annotations(root)


def read_coco_objects(chosen: QuestionSet, part: QuestionPart) -> AnnotatedObjects:
    """Read the objects of a part, or of all images if there is no validation part.

    ``chosen.source`` is a folder as for detection (:mod:`ehm.data.sources.coco_layouts`), or one file of annotations.
    """
    root = Path(chosen.source).expanduser()
    found = _find_in_file(root) if root.is_file() else _find_in_folder(chosen.source, root, part)
    folder = found.folder if chosen.images is None else Path(chosen.images).expanduser()
    source = read_annotations(found.file, folder, found.split, masks=False)
    title = f"COCO's format by {found.file.name}"
    return AnnotatedObjects(_count_objects(source), folder, found.split, title, found.file)


def _find_in_folder(source: str, root: Path, part: QuestionPart) -> Annotated:
    several = sorted((root / "annotations").glob("instances_train*.json"))
    if len(several) > 1:
        raise DataError(f"{source}: has annotations of several years; give one file as source, such as {several[-1]}")
    found = find_annotations(source, "train")
    if part == "validation" and found.split == "train":
        return find_annotations(source, "val")
    return found


def _find_in_file(file: Path) -> Annotated:
    """Return the images' folder beside a single file: that of its part, or images/."""
    match = _FILE.fullmatch(file.name)
    split: Split = "all"
    if match is None or match[1] is None:
        return Annotated(file, file.parent / "images", split)
    above = file.parent.parent if file.parent.name == "annotations" else file.parent
    return Annotated(file, above / match[1], split)


def _count_objects(source: CocoSource) -> ObjectCounts:
    counts = np.zeros((len(source), len(source.classes)), np.int32)
    crowded = np.zeros(counts.shape, bool)
    for index, objects in enumerate(source.annotations):
        for each in objects:
            number = source.numbers[each["category_id"]]
            counts[index, number] += 1
            if each.get("iscrowd"):
                crowded[index, number] = True
    files = [str(image["file_name"]) for image in source.images]
    identifiers = [image["id"] for image in source.images]
    return ObjectCounts(files, identifiers, source.classes, counts, crowded)
