"""Sources that are folders of image files: any folder, and the photographs of ELPV."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ehm.data.sources.base import FileSource, Names, Split
from ehm.data.sources.image_files import IMAGES, has_image_suffix, list_hidden_images, list_image_files
from ehm.data.sources.inventory import (
    HIDDEN,
    OTHER_FORMAT,
    Unused,
    describe_layout,
    describe_parts,
    is_sample_file,
    list_names,
    no_images,
)
from ehm.data.sources.parts import (
    MASK_FOLDERS,
    Division,
    Part,
    divide_by_layout,
    list_visible_folders,
    no_validation_part,
)
from ehm.errors import DataError
from ehm.storage.names import escape_undecodable
from ehm.storage.reading import read_text

__all__ = [
    "ElpvSource",
    "PartFiles",
    "count_beside_parts",
    "describe_division",
    "list_part",
    "make_file_source",
    "open_elpv",
    "open_folder",
]

BESIDE_PARTS = "beside the parts"


@dataclass(frozen=True)
class PartFiles:
    """Image files of one part, as paths below the source's root, and the class folder of each; None if it has none."""

    files: list[str]
    class_folders: list[str | None]


@dataclass(frozen=True)
class ElpvSource(FileSource):
    """ELPV with the ``probability`` of a defect (n,), 0, 1/3, 2/3 or 1, and the ``kind`` of each cell, mono or poly."""

    probability: NDArray[np.float64]
    kind: tuple[str, ...]

    def select(self, indices: NDArray[np.int64], labels: NDArray[np.int64], classes: tuple[str, ...]) -> ElpvSource:
        """Return the images at ``indices`` (n,) alone, with ``labels`` (n,) that number ``classes``."""
        selected = super().select(indices, labels, classes)
        assert isinstance(selected, ElpvSource)
        kind = tuple(self.kind[index] for index in indices.tolist())
        return replace(selected, probability=self.probability[indices], kind=kind)


def open_elpv(source: str, split: Split) -> ElpvSource:
    """Open the 2,624 solar cells of Buerhop-Lutz et al. (2018), labelled "functional" or "defective".

    Experts said whether a cell is defective and whether they are sure; the data set writes the four answers as 0, 1/3,
    2/3 and 1. A label is the first answer alone: defective from 0.5 on, that is 2/3 and 1 (821 of 2,624 cells).
    ``source`` is "elpv" for the package's photographs or a folder that holds labels.csv and images/.
    """
    root = Path(source).expanduser()
    if source == "elpv":
        package = find_spec("elpv_dataset")
        if package is None or not package.submodule_search_locations:
            raise DataError("data.source elpv: its photographs are not installed; pip install elpv-dataset")
        root = Path(package.submodule_search_locations[0]) / "data"
    table = root / "labels.csv"
    if not table.is_file():
        raise DataError(f"data.source {source}: no labels.csv of ELPV in {root}")
    if split == "val":
        raise no_validation_part(source)
    files = []
    probabilities = []
    kinds = []
    for line in read_text(table).splitlines():
        try:
            file, probability_text, kind, *_ = line.split()
            probabilities.append(float(probability_text))
        except ValueError:
            raise DataError(f"{table}: expected lines of an image's path, its probability and mono or poly") from None
        files.append(file)
        kinds.append(kind)
    probability = np.array(probabilities)
    labels = (probability >= 0.5).astype(np.int64)
    classes = ("functional", "defective")
    notes = (describe_layout("photographs of ELPV", (), len(classes)),)
    return ElpvSource(root, Names(files), labels, classes, "all", probability, tuple(kinds), notes=notes)


def open_folder(source: str, split: Split, layout: str = "folder") -> FileSource:
    """Open all images in a folder, sorted by name; hidden files and folders are passed over, links are followed.

    If every image lies in one of at least two folders, these are the classes; otherwise there are no labels. A folder
    that has parts (``layout`` is what `divide_by_layout` takes) is divided into these, and the classes are those of the
    training part. The test part is never read. Raises DataError if the folders hold images and their masks.
    """
    division = divide_by_layout(source, layout, IMAGES)
    root = division.root
    unused = Unused()
    contents: dict[Part, PartFiles] = {}
    for part, name in division.parts.items():
        contents[part] = list_part(root, name, unused)
    if not contents:
        contents = {"train": list_part(root, "", unused)}
    place = root / division.parts.get("train", "")
    folders = list(dict.fromkeys(contents["train"].class_folders))  # each once, in order
    # otherwise the user has said that folders of masks are classes
    if layout != "classes":
        _refuse_masks(source, place, folders)
    classes = _as_classes(folders)
    if division.parts:
        count_beside_parts(division, unused)

    notes = [describe_layout(_name_kind(source, division), list(division.parts.values()), len(classes))]
    if None in folders and len(folders) > 1:
        loose = contents["train"].files[contents["train"].class_folders.index(None)]
        notes.append(f"its folders are no classes, because {list_names([loose])} lies beside them")
    notes += describe_division(division, contents)
    empty = _find_empty_folders(place, classes)
    return make_file_source(source, root, contents, split, classes, notes, unused, empty)


def describe_division(division: Division, contents: Mapping[Part, PartFiles]) -> list[str]:
    """Return a line with the number of images in each part; none if there are no other parts than one."""
    if len(division.parts) < 2:
        return []
    counts = {division.parts[part]: len(found.files) for part, found in contents.items()}
    never_read = [division.parts["test"]] if "test" in division.parts else []
    return [describe_parts(counts, never_read)]


def list_part(root: Path, name: str, unused: Unused) -> PartFiles:
    """List the images in the folder ``name`` of ``root``, all of ``root`` if it is empty; others go to ``unused``."""
    files = list(list_image_files(root, name, unused))
    return PartFiles(files, [_find_first_folder(file, name) for file in files])


def make_file_source(
    source: str,
    root: Path,
    parts: Mapping[Part, PartFiles],
    split: Split,
    classes: tuple[str, ...],
    notes: Sequence[str],
    unused: Unused,
    empty_classes: tuple[str, ...] = (),
) -> FileSource:
    """Make the source of the part ``split``, of training and validation if it is "all"; no labels if a file has none.

    Without a part "val", "train" is all that there is, and "val" raises DataError. A part "test" is left out.
    """
    if split == "val" and "val" not in parts:
        raise no_validation_part(source)
    if "val" not in parts:
        split = "all"
    files: list[str] = []
    class_folders: list[str | None] = []
    for part, found in parts.items():
        if part != "test" and split in ("all", part):
            files += found.files
            class_folders += found.class_folders
    if unused:
        notes = [*notes, unused.describe()]
    if not files:
        raise no_images(source, f"in {root} or its subfolders", unused)
    if not classes or None in class_folders:
        return FileSource(root, Names(files), None, (), split, notes=tuple(notes))
    numbers: dict[str | None, int] = {name: number for number, name in enumerate(classes)}
    for file, name in zip(files, class_folders, strict=True):
        # what is not trained cannot be measured
        if name not in numbers:
            raise DataError(f"data.source {source}: {file} is of class {name}, which the training part does not have")
    labels = np.array([numbers[name] for name in class_folders], dtype=np.int64)
    return FileSource(
        root,
        Names(files),
        labels,
        tuple(map(escape_undecodable, classes)),
        split,
        notes=tuple(notes),
        empty_classes=empty_classes,
    )


def _find_first_folder(file: str, place: str) -> str | None:
    """Return the folder of ``file`` right below ``place``, None if it lies in ``place`` itself."""
    if place:
        file = file[len(place) + 1 :]
    first, separator, _ = file.partition(os.sep)
    return first if separator else None


def _as_classes(folders: Sequence[str | None]) -> tuple[str, ...]:
    """Return the folders as classes, if there are two at least and no image lies beside them."""
    if None in folders or len(folders) < 2:
        return ()
    return tuple(filter(None, folders))


def _name_kind(source: str, division: Division) -> str:
    """Return "folder", and which one if the parts lie deeper than in the source itself."""
    outer = Path(source).expanduser()
    if division.root == outer:
        return "folder"
    return f"folder {list_names([str(division.root.relative_to(outer))])}/"


def _refuse_masks(source: str, place: Path, folders: Sequence[str | None]) -> None:
    """Raise DataError if the folders are images/ and that of their masks: no classes, and masks are no photographs."""
    masks = []
    images = []
    for name in filter(None, folders):
        if name.lower() in MASK_FOLDERS:
            masks.append(name)
        elif name.lower() == "images":
            images.append(name)
    masks.sort()
    if images and masks:
        raise DataError(
            f"data.source {source}: fits two layouts: images with their masks ({images[0]}/ and {masks[0]}/) and "
            f"classes of these names; data.source={place / images[0]} takes the images alone, and data.layout=classes "
            "both folders as classes"
        )


def count_beside_parts(division: Division, unused: Unused) -> None:
    """Count the images that lie beside the parts, in folders or loose."""
    for name in list_visible_folders(division.root):
        if name not in division.parts.values():
            unused.add_all(BESIDE_PARTS, list_image_files(division.root, name, unused))
    for entry in sorted(os.scandir(division.root), key=lambda entry: entry.name):
        if not os.path.isfile(entry.path):
            continue
        if entry.name.startswith("."):
            unused.add_all(HIDDEN, list_hidden_images(division.root, entry.name))
        elif has_image_suffix(entry.name):
            unused.add(BESIDE_PARTS, entry.name)
        elif is_sample_file(entry.path):
            unused.add(OTHER_FORMAT, entry.name)


def _find_empty_folders(place: Path, classes: Sequence[str]) -> tuple[str, ...]:
    """Return the folders beside ``classes`` that are classes without images: empty ones, and those of other formats."""
    if not classes:
        return ()
    found = []
    for name in list_visible_folders(place):
        if name in classes:
            continue
        files = _list_visible_files(place / name)
        if not files or any(map(is_sample_file, files)):
            found.append(name)
    return tuple(found)


def _list_visible_files(root: Path) -> list[str]:
    files = []
    for folder_path, _, names in os.walk(root):
        for name in names:
            if not name.startswith("."):
                files.append(os.path.join(folder_path, name))
    return files
