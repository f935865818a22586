"""Find the files with annotations in COCO's format, and the folders with their images.

annotations/instances_train2017.json, instances_val2017.json, train2017/, val2017/      any year, or none
annotations/instances_train.json, instances_valid.json, train/, valid/                  other spellings of the parts
instances.json, images/                                                                 one file for all images
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ehm.data.sources.base import Split
from ehm.data.sources.parts import Part, match_parts, no_validation_part, refuse_address
from ehm.errors import DataError

__all__ = ["Annotated", "find_annotations", "holds_annotations"]

PREFIX = "instances_"
SINGLE = "instances.json"
LOOKED_FOR = f"annotations/{PREFIX}train2017.json, annotations/{PREFIX}train.json and {SINGLE}"


@dataclass(frozen=True)
class Annotated:
    """A ``file`` of annotations and the ``folder`` of its images: the part ``split`` of a set with these ``parts``."""

    file: Path
    folder: Path
    split: Split
    parts: tuple[str, ...] = ()


def holds_annotations(root: Path) -> bool:
    """Return whether a folder holds a file of annotations in one of these layouts."""
    return (root / SINGLE).is_file() or any((root / "annotations").glob(f"{PREFIX}*.json"))


def find_annotations(source: str, split: Split, layout: str = "auto") -> Annotated:
    """Return the annotations of the part ``split``; those of the training part, or of all images, unless it is "val".

    ``layout`` "coco" takes the files without a year, or the only year; "coco2014" and "coco2017" those of this year;
    "instances" the single file. Raises DataError if there are none, and with "auto" if there are several.
    """
    refuse_address(source)
    root = Path(source).expanduser()
    years = _group_by_year(source, root)
    fitting = {f"coco{year}": parts for year, parts in years.items()}
    single = root / SINGLE
    if single.is_file():
        fitting["instances"] = {}
    if layout == "coco" and "coco" not in fitting:
        # without files that have no year, those of the only year are meant, not the single file
        if years:
            fitting.pop("instances", None)
    elif layout != "auto":
        fitting = {name: parts for name, parts in fitting.items() if name == layout}
    if not fitting:
        raise DataError(f"data.source {source}: not COCO's layout; looked for {LOOKED_FOR}")
    if len(fitting) > 1:
        choices = " or ".join(f"data.layout={name}" for name in fitting)
        raise DataError(
            f"data.source {source}: fits {len(fitting)} layouts: {', '.join(fitting)}; choose with {choices}"
        )
    name, parts = next(iter(fitting.items()))
    if split == "val" and "val" not in parts:
        if parts:
            raise no_validation_part(source)
        raise DataError(f"data.source {source}: has no validation part of its own (annotations/{PREFIX}val.json)")
    if name == "instances":
        return Annotated(single, root / "images", "all")
    part: Part = "val" if split == "val" else "train"
    file = root / "annotations" / f"{PREFIX}{parts[part]}.json"
    # without a validation part, these are all images that there are
    known: Split = "all"
    if "val" in parts:
        known = "val" if split == "val" else "train"
    return Annotated(file, root / parts[part], known, tuple(parts.values()))


def _group_by_year(source: str, root: Path) -> dict[str, Mapping[Part, str]]:
    """Return the names of the parts of each year ("" for none) that has a training part."""
    names: dict[str, list[str]] = {}
    for file in sorted((root / "annotations").glob(f"{PREFIX}*.json")):
        name = file.stem.removeprefix(PREFIX)
        year = re.search(r"\d{4}$", name)
        names.setdefault(year[0] if year else "", []).append(name)
    groups: dict[str, Mapping[Part, str]] = {}
    for name_of_year, found in sorted(names.items()):
        parts = match_parts(source, found)
        if "train" in parts:
            groups[name_of_year] = parts
    return groups
