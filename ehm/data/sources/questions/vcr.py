"""The objects of VCR (Zellers et al., 2019), by image and name.

train.jsonl, val.jsonl, or the same in vcr1annots/      a line for each question: objects, img_fn
vcr1images/                                             the images
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from ehm.config import QuestionSet
from ehm.data.sources.base import Split
from ehm.data.sources.questions.messages import QuestionPart
from ehm.data.sources.questions.objects import AnnotatedObjects, ObjectCounts
from ehm.errors import DataError
from ehm.storage.reading import describe_value, parse_json, read_text

__all__ = ["holds_vcr", "read_vcr_objects"]

_FILES: dict[QuestionPart, str] = {"train": "train.jsonl", "validation": "val.jsonl"}
_FOLDERS = ("", "vcr1annots")
_IMAGES = "vcr1images"
_NAMES_OF_TWO_WORDS = (
    "traffic light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "sports ball",
    "baseball bat",
    "baseball glove",
    "tennis racket",
    "wine glass",
    "hot dog",
    "potted plant",
    "dining table",
    "cell phone",
    "teddy bear",
    "hair drier",
)
"""COCO's names, which VCR writes without the blank."""
_NAMES = {name.replace(" ", ""): name for name in _NAMES_OF_TWO_WORDS}


def holds_vcr(root: Path) -> bool:
    """Return whether a folder has annotations of VCR."""
    return bool(_find_files(root))


def read_vcr_objects(chosen: QuestionSet, part: QuestionPart) -> AnnotatedObjects:
    """Read the objects of a part, or of all images if there is only one; raises DataError if a line cannot be read."""
    root = Path(chosen.source).expanduser()
    files = _find_files(root)
    split: Split = "all"
    if len(files) == len(_FILES):
        split = "train" if part == "train" else "val"
    file = files.get(part) or next(iter(files.values()))
    folder = root / _IMAGES if chosen.images is None else Path(chosen.images).expanduser()
    return AnnotatedObjects(_count_objects(file), folder, split, f"VCR by {file.name}", file)


def _find_files(root: Path) -> dict[QuestionPart, Path]:
    """Return the files of annotations by their parts."""
    found: dict[QuestionPart, Path] = {}
    for part, name in _FILES.items():
        for folder in _FOLDERS:
            if part not in found and (root / folder / name).is_file():
                found[part] = root / folder / name
    return found


def _count_objects(file: Path) -> ObjectCounts:
    """Count the objects of each image once, of which several lines ask."""
    found: dict[str, Counter[str]] = {}
    for number, line in enumerate(read_text(file, what="annotations of VCR").splitlines(), start=1):
        image, objects = _read_line(line, f"{file}, line {number}")
        if image not in found:
            found[image] = Counter(objects)
    names: list[str] = sorted(set().union(*found.values()))
    if not names:
        raise DataError(f"{file}: names no objects")
    numbers = {name: number for number, name in enumerate(names)}
    counts = np.zeros((len(found), len(names)), np.int32)
    for index, of_image in enumerate(found.values()):
        for name, count in of_image.items():
            counts[index, numbers[name]] = count
    files = list(found)
    return ObjectCounts(files, files, names, counts, np.zeros(counts.shape, bool))


def _read_line(line: str, where: str) -> tuple[str, list[str]]:
    """Return the image of a line and the names of its objects, as COCO writes them."""
    row = parse_json(line, where)
    match row:
        case {"img_fn": str(image), "objects": list(objects)} if all(isinstance(each, str) for each in objects):
            names: list[str] = objects
            return image, [_NAMES.get(name, name) for name in names]
    raise DataError(f"{where}: expected img_fn and objects, not {describe_value(row)}")
