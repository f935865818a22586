"""ImageNet-1K as published, and as Kaggle has it."""

from __future__ import annotations

import re
from pathlib import Path

from ehm.data.sources.base import FileSource, Split
from ehm.data.sources.folder import PartFiles, count_beside_parts, describe_division, list_part, make_file_source
from ehm.data.sources.inventory import Unused, describe_layout
from ehm.data.sources.parts import Division, Part, list_visible_folders, match_parts, no_validation_part
from ehm.errors import DataError
from ehm.storage.reading import read_rows

__all__ = ["find_imagenet", "open_imagenet"]

_KAGGLE = Path("ILSVRC", "Data", "CLS-LOC")
_SOLUTION = "LOC_val_solution.csv"
_WORDNET_ID = re.compile(r"n\d{8}")


def open_imagenet(source: str, split: Split) -> FileSource:
    """Open ImageNet-1K: ``train/nXXXXXXXX/*.JPEG`` and ``val/``, or Kaggle's ``ILSVRC/Data/CLS-LOC``.

    ``val/`` has class folders, or is flat beside (or below the folder of) Kaggle's LOC_val_solution.csv. Labels number
    the WordNet identifiers in sorted order, as usual. Other spellings of the parts are known, and the test part is
    never read.
    """
    division = find_imagenet(source)
    if division is None:
        raise DataError(
            f"data.source {source}: not ImageNet's layout; looked for train/nXXXXXXXX/ and {_KAGGLE}/train/"
        )
    if split == "val" and "val" not in division.parts:
        raise no_validation_part(source)
    unused = Unused()
    contents: dict[Part, PartFiles] = {}
    for part, name in division.parts.items():
        contents[part] = list_part(division.root, name, unused)
    contents["train"] = _leave_out_loose(contents["train"], unused)
    if "val" in contents:
        contents["val"] = _label_flat_part(source, division, contents["val"], needed=split == "val")
    classes = tuple(list_visible_folders(division.folder("train")))
    count_beside_parts(division, unused)
    notes = [describe_layout("ImageNet", list(division.parts.values()), len(classes))]
    notes += describe_division(division, contents)
    return make_file_source(source, division.root, contents, split, classes, notes, unused)


def _leave_out_loose(found: PartFiles, unused: Unused) -> PartFiles:
    """Return the training images without those that lie beside the class folders, which would leave all unlabelled."""
    files: list[str] = []
    class_folders: list[str | None] = []
    for file, name in zip(found.files, found.class_folders, strict=True):
        if name is None:
            unused.add("beside the class folders", file)
        else:
            files.append(file)
            class_folders.append(name)
    return PartFiles(files, class_folders)


def find_imagenet(source: str) -> Division | None:
    """Return the folder that holds ImageNet's parts, in or below ``source``, and their names; None if none does."""
    root = Path(source).expanduser()
    # Kaggle's first, which lies below the folder that is named
    for candidate in (root / _KAGGLE, root):
        parts = match_parts(source, list_visible_folders(candidate))
        if "train" not in parts:
            continue
        if any(map(_WORDNET_ID.fullmatch, list_visible_folders(candidate / parts["train"]))):
            # other data sets have a folder train/, too
            return Division(candidate, parts)
    return None


def _label_flat_part(source: str, division: Division, found: PartFiles, needed: bool) -> PartFiles:
    """Return the validation images with their class folders, from Kaggle's table if they lie in no folders."""
    if None not in found.class_folders:
        return found
    solution = _read_solution(division.root)
    if solution is None:
        if needed:
            name = division.parts["val"]
            raise DataError(f"data.source {source}: {name}/ has no class folders, and no {_SOLUTION} lies above it")
        return found
    return PartFiles(found.files, [solution.get(Path(file).stem) for file in found.files])


def _read_solution(root: Path) -> dict[str, str] | None:
    """Return the WordNet identifier of each image, from Kaggle's table in ``root`` or up to three folders above it."""
    for place in (root, *root.resolve().parents[:3]):
        if (place / _SOLUTION).is_file():
            rows = read_rows(place / _SOLUTION, ("ImageId", "PredictionString"))
            return {row["ImageId"]: row["PredictionString"].partition(" ")[0] for _, row in rows}
    return None
