"""Recognise the parts (training, validation, test) that a data set is divided into, by the names of its folders.

    train/ val/ test/            valid/, validation/ and dev/ mean val/; training/ means train/; in any case
    train2017/ val2017/          a year may follow, as in COCO
    images/train/ images/val/    the same in the only folder of the source that holds samples

Folders of these names are parts if there are no others beside them, or if the training part and another part have
folders (classes) of the same names. What might be parts as well as classes is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from ehm.data.sources.inventory import list_names
from ehm.data.stores.addresses import is_address
from ehm.errors import DataError

__all__ = [
    "MASK_FOLDERS",
    "PARTS",
    "Division",
    "Part",
    "SampleFinder",
    "divide_by_layout",
    "is_folder",
    "list_part_files",
    "list_visible_folders",
    "match_parts",
    "name_part",
    "no_validation_part",
    "refuse_address",
]

T = TypeVar("T")
Part = Literal["train", "val", "test"]

PARTS: tuple[Part, ...] = ("train", "val", "test")
IN_WORDS: Mapping[Part, str] = {"train": "training", "val": "validation", "test": "test"}
SPELLINGS: Mapping[str, Part] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""Names of folders, in lower case, and the part that each means."""

MASK_FOLDERS = ("masks", "annotations", "labels")
"""Names of folders that hold the masks of the images in images/ beside them."""

_NAME_AND_YEAR = re.compile(r"([a-z]+?)[-_]?(?:\d{4})?")


@dataclass(frozen=True)
class SampleFinder:
    """A pair of tests whether a folder holds samples of some kind: anywhere ``below`` it, or ``directly`` in it."""

    below: Callable[[Path], bool]
    directly: Callable[[Path], bool]


@dataclass(frozen=True)
class Division:
    """The folder ``root`` and the names of the folders that are its parts; no parts if it is not divided.

    ``others`` are folders beside the parts that hold samples too; no part reads them.
    """

    root: Path
    parts: Mapping[Part, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()

    def folder(self, part: Part) -> Path:
        """Return the folder of ``part``."""
        return self.root / self.parts[part]


def name_part(folder: str) -> Part | None:
    """Return the part that a folder of this name usually holds, or None."""
    found = _NAME_AND_YEAR.fullmatch(folder.lower())
    if found is None:
        return None
    return SPELLINGS.get(found[1])


def match_parts(source: str, names: Iterable[str]) -> dict[Part, str]:
    """Return which of ``names`` is the folder of which part; DataError if two of them mean the same part."""
    found: dict[Part, str] = {}
    for name in names:
        part = name_part(name)
        if part is None:
            continue
        if part in found:
            raise DataError(
                f"data.source {source}: {found[part]}/ and {name}/ both look like the {IN_WORDS[part]} part; give one "
                "of them as data.source, or rename one"
            )
        found[part] = name
    # in the order of the parts, not of their names
    return {part: found[part] for part in PARTS if part in found}


def list_part_files(parts: Mapping[Part, Iterable[T]], split: Literal["all", "train", "val"] = "all") -> list[T]:
    """Return the files of the part ``split``, or those of training and validation for "all"; never those of a test."""
    files: list[T] = []
    for part, found in parts.items():
        if part != "test" and split in ("all", part):
            files += found
    return files


def list_visible_folders(root: Path) -> list[str]:
    """Return the names of the subfolders that are not hidden, sorted; none if ``root`` is no folder."""
    if not root.is_dir():
        return []
    try:
        names = []
        for entry in os.scandir(root):
            if is_folder(entry) and not entry.name.startswith("."):
                names.append(entry.name)
        return sorted(names)
    except OSError as error:
        raise DataError(f"data.source: cannot read {root}: {error.strerror}") from None


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry of a folder is a folder, or a link to one; a link that leads to itself is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def no_validation_part(source: str) -> DataError:
    """Return the error for a source that is asked for a validation part and has none."""
    return DataError(f"data.source {source}: has no validation part of its own (a folder val/ beside train/)")


def refuse_address(source: str) -> None:
    """Raise DataError if ``source`` is an address where only folders of this machine are read."""
    if is_address(source):
        raise DataError(
            f"data.source {source}: only folders of this machine are read here; shards and rows in a store are read by "
            "pretraining, classification, retrieval and comparison, with data.layout auto"
        )


def divide_by_layout(source: str, layout: str, finder: SampleFinder) -> Division:
    """Find the parts of the folder ``source`` as ``layout`` says.

    "classes" means that it has none, "parts" that every folder named like one is one; with any other layout the names
    and what lies beside them decide. Raises DataError if there is no such folder, if parts and classes are both
    possible, or if there is no part to train on.
    """
    refuse_address(source)
    root = Path(source).expanduser()
    if not root.is_dir():
        wrong = "is a file, not a folder" if root.exists() else "there is no such folder"
        raise DataError(f"data.source {source}: {wrong}")
    if layout == "classes":
        return Division(root)
    certain = layout == "parts"
    division = _divide_folder(source, root, finder, certain)
    if division is None:
        division = _divide_only_folder(source, root, finder, certain)
    if division is None and layout == "parts":
        raise DataError(f"data.source {source}: data.layout=parts needs a folder train/ (or training/) with samples")
    if division is not None and "train" not in division.parts:
        names = [f"{name}/" for name in division.parts.values()]
        raise DataError(
            f"data.source {source}: has {list_names(names)} and no part to train on (train/ or training/); to read one "
            f"of them all the same, name it: data.source={division.root / names[0]}"
        )
    return division or Division(root)


def _divide_folder(source: str, root: Path, finder: SampleFinder, certain: bool) -> Division | None:
    """Return the parts in ``root``, None if it has none. ``certain`` says that names like those of parts are parts."""
    folders = list_visible_folders(root)
    if not any(map(name_part, folders)):
        return None  # without looking into each, which takes long in large sets
    filled = []
    others = []
    for name in folders:
        if finder.below(root / name):
            filled.append(name)
            if name_part(name) is None:
                others.append(name)
    parts = match_parts(source, filled)
    if not parts:
        return None
    division = Division(root, parts, tuple(others))
    if certain or _share_class_folders(division):
        return division
    loose = finder.directly(root)
    if not others and (len(parts) > 1 or not loose):
        return division
    if set(parts) == {"train"} and not _has_class_folders(division.folder("train"), finder):
        return None  # no other part, and images as in any class: a class that is called "train"
    raise _fits_two_layouts(source, division)


def _divide_only_folder(source: str, root: Path, finder: SampleFinder, certain: bool) -> Division | None:
    """Return the parts in the only folder of ``root`` that holds samples, as an unpacked archive has them."""
    filled: list[str] = []
    for name in list_visible_folders(root):
        if finder.below(root / name):
            filled.append(name)
        if len(filled) > 1:
            return None
    if not filled or finder.directly(root):
        return None
    division = _divide_folder(source, root / filled[0], finder, certain)
    if division is None or (len(division.parts) == 1 and not certain):
        return None
    return division


def _share_class_folders(division: Division) -> bool:
    """Return whether the training part and another part have a folder of the same name: a class of both."""
    if "train" not in division.parts:
        return False
    classes = set(list_visible_folders(division.folder("train")))
    measured = [part for part in division.parts if part != "train"]
    return any(classes & set(list_visible_folders(division.folder(part))) for part in measured)


def _has_class_folders(root: Path, finder: SampleFinder) -> bool:
    return len(list_visible_folders(root)) > 1 and not finder.directly(root)


def _fits_two_layouts(source: str, division: Division) -> DataError:
    parts = list_names([f"{name}/" for name in division.parts.values()])
    beside = list_names([f"{name}/" for name in division.others]) or "the images beside"
    if "train" not in division.parts:
        return DataError(
            f"data.source {source}: fits two layouts, classes and parts: {parts} may be a class as {beside} are, or a "
            "part that is kept for measuring; data.layout=classes takes all folders as classes; if it is a part, move "
            "the classes into train/ beside it"
        )
    every = list_names(sorted([*division.parts.values(), *division.others]))
    return DataError(
        f"data.source {source}: fits two layouts: parts ({parts} without {beside}) and classes ({every}); choose with "
        "data.layout=parts or data.layout=classes"
    )
