"""Sources that are folders of image files: any folder, ImageNet's official layouts, and the photographs of ELPV."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ehm.data.decode import SUFFIXES
from ehm.data.source import FileSource, Names, Split
from ehm.errors import DataError
from ehm.names import escape_undecodable
from ehm.reading import read_rows, read_text

__all__ = ["ElpvSource", "elpv", "find_imagenet", "folder", "image_files", "imagenet", "part_folders"]

_KAGGLE = Path("ILSVRC", "Data", "CLS-LOC")
_SOLUTION = "LOC_val_solution.csv"


@dataclass(frozen=True)
class ElpvSource(FileSource):
    """ELPV with the ``probability`` of a defect (n,), 0, 1/3, 2/3 or 1, and the ``kind`` of each cell, mono or poly."""

    probability: NDArray[np.float64]
    kind: tuple[str, ...]


def elpv(source: str, split: Split) -> ElpvSource:
    """The 2,624 solar cells of Buerhop-Lutz et al. (2018), labelled "functional" or "defective".

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
        raise _no_val(source)
    rows = [line.split() for line in read_text(table).splitlines()]
    try:
        probability = np.array([float(row[1]) for row in rows])
        kind = tuple(row[2] for row in rows)
    except (IndexError, ValueError):
        raise DataError(f"{table}: expected lines of an image's path, its probability and mono or poly") from None
    labels = (probability >= 0.5).astype(np.int64)
    classes = ("functional", "defective")
    return ElpvSource(root, Names(row[0] for row in rows), labels, classes, "all", probability, kind)


def folder(source: str, split: Split) -> FileSource:
    """All images in a folder, sorted by name; hidden files and folders are passed over, links are followed.

    Where every image lies in one of at least two folders, these are the classes; otherwise there are no labels. A
    folder that has ``train/`` and ``val/`` is divided into these, and the classes are those of ``train/``.
    """
    root = Path(source).expanduser()
    parts, split = part_folders(source, split)
    classes = _class_folders(root / "train" if split == "val" else parts[0])
    files, names = [], []
    for part in parts:
        for file in image_files(part):
            files.append(str((part / file).relative_to(root)))
            names.append(_first_folder(file))
    return _labelled(source, root, files, names, classes, split)


def imagenet(source: str, split: Split) -> FileSource:
    """ImageNet-1K as published: ``train/nXXXXXXXX/*.JPEG`` and ``val/``, or Kaggle's ``ILSVRC/Data/CLS-LOC``.

    ``val/`` has class folders, or is flat beside (or below the folder of) Kaggle's LOC_val_solution.csv. Labels number
    the WordNet identifiers in sorted order, as usual.
    """
    root = find_imagenet(Path(source).expanduser())
    if root is None:
        raise DataError(
            f"data.source {source}: not ImageNet's layout; looked for train/nXXXXXXXX/ and {_KAGGLE}/train/"
        )
    if split == "val" and not (root / "val").is_dir():
        raise _no_val(source)
    classes = tuple(_folders(root / "train"))
    parts = [part for part in ("train", "val") if split in ("all", part) and (root / part).is_dir()]
    files, names = [], []
    for part in parts:
        found = list(image_files(root / part))
        flat = part == "val" and any(_first_folder(file) is None for file in found)
        solution = _solution(root) if flat else None
        if flat and solution is None and split == "val":
            raise DataError(f"data.source {source}: val/ has no class folders, and no {_SOLUTION} lies above it")
        for file in found:
            files.append(os.path.join(part, file))
            names.append(solution.get(Path(file).stem) if solution is not None else _first_folder(file))
    return _labelled(source, root, files, names, classes, split)


def find_imagenet(root: Path) -> Path | None:
    """The folder that holds ImageNet's train/ in or below ``root``, or None."""
    for candidate in (root / _KAGGLE, root):
        if any(re.fullmatch(r"n\d{8}", name) for name in _folders(candidate / "train")):
            return candidate
    return None


def part_folders(source: str, split: Split) -> tuple[list[Path], Split]:
    """The folders that ``split`` consists of and which part that is; raises DataError where there is no such part."""
    root = Path(source).expanduser()
    if not root.is_dir():
        wrong = "is a file, not a folder" if root.exists() else "there is no such folder"
        raise DataError(f"data.source {source}: {wrong}")
    names = _folders(root)
    if "train" not in names or not ("val" in names or {"train", "test"}.issuperset(names)):
        if split == "val":
            raise _no_val(source)
        return [root], "all"
    if split == "val" and "val" not in names:
        raise _no_val(source)
    return [root / part for part in ("train", "val") if part in names and split in ("all", part)], split


def _no_val(source: str) -> DataError:
    return DataError(f"data.source {source}: has no validation part of its own (a folder val/ beside train/)")


def _labelled(
    source: str, root: Path, files: Sequence[str], names: Sequence[str | None], classes: tuple[str, ...], split: Split
) -> FileSource:
    """The source of ``files`` whose class folders are ``names``; no labels where a file has none."""
    if not files:
        kinds = " ".join(sorted(SUFFIXES))
        raise DataError(f"data.source {source}: no images in {root} or its subfolders (looked for {kinds})")
    if not classes or None in names:
        return FileSource(root, Names(files), None, (), split)
    numbers: dict[str | None, int] = {name: number for number, name in enumerate(classes)}
    for file, name in zip(files, names, strict=True):
        if name not in numbers:
            raise DataError(f"data.source {source}: {file} is of class {name}, which train/ does not have")
    labels = np.array([numbers[name] for name in names], dtype=np.int64)
    return FileSource(root, Names(files), labels, tuple(map(escape_undecodable, classes)), split)


def image_files(root: Path, below: str = "", above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
    """Paths of images relative to ``root``, sorted within each folder; a link to a folder above it is not followed."""
    try:
        status = os.stat(root / below)
        with os.scandir(root / below) as scan:
            entries = sorted((entry for entry in scan if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"data.source: cannot read {root / below}: {error.strerror}") from None
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in entries:
        path = os.path.join(below, entry.name)
        if entry.is_dir():
            yield from image_files(root, path, above | {here})
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:  # a dangling link too: the loader reports it
            yield path


def _folders(root: Path) -> list[str]:
    """Names of the visible subfolders, sorted; none where there is no such folder."""
    if not root.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))


def _class_folders(root: Path) -> tuple[str, ...]:
    """The subfolders with images, where there are two at least and no image lies beside them."""
    names: list[str] = []
    for file in image_files(root):
        name = _first_folder(file)
        if name is None:
            return ()
        if not names or names[-1] != name:
            names.append(name)
    return tuple(names) if len(names) > 1 else ()


def _first_folder(file: str) -> str | None:
    first, separator, _ = file.partition(os.sep)
    return first if separator else None


def _solution(root: Path) -> dict[str, str] | None:
    """Image name to WordNet identifier, from Kaggle's table in ``root`` or up to three folders above it."""
    for place in (root, *root.resolve().parents[:3]):
        if (place / _SOLUTION).is_file():
            rows = read_rows(place / _SOLUTION, ("ImageId", "PredictionString"))
            return {row["ImageId"]: row["PredictionString"].partition(" ")[0] for _, row in rows}
    return None
