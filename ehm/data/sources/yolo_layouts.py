"""Find the images and the label files of a set in YOLO's format, and the names of its classes.

data.yaml                                   path, train, val and names, as Ultralytics and Roboflow write it
images/train/, labels/train/                or images/val/, labels/val/: parts below images/
train/images/, train/labels/                or valid/images/, valid/labels/: images/ below the parts
images/, labels/                            no parts; classes.txt or obj.names has a class a line
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ehm.config.loading import read_mapping
from ehm.data.sources.image_files import list_image_files
from ehm.data.sources.parts import Part, list_visible_folders, match_parts
from ehm.errors import DataError
from ehm.storage.reading import read_text

__all__ = ["YoloFiles", "find_yolo", "holds_yolo"]

_DESCRIPTIONS = ("data.yaml", "data.yml", "dataset.yaml")
_CLASS_LISTS = ("classes.txt", "obj.names", "labels.txt")
_IMAGES = "images"
_LABELS = "labels"


@dataclass(frozen=True)
class YoloFiles:
    """The image files of each part, as paths, and the names of the classes; no names if nothing says them.

    A set without parts has the training part alone. ``description`` is what was recognised.
    """

    root: Path
    images: Mapping[Part, tuple[str, ...]]
    classes: tuple[str, ...]
    description: str


def holds_yolo(source: str) -> bool:
    """Return whether ``source`` is a description of a set in YOLO's format, or a folder that is laid out so."""
    root = Path(source).expanduser()
    if root.suffix.lower() in (".yaml", ".yml"):
        return root.is_file()
    return _find_description(root) is not None or bool(_list_image_folders(source, root))


def find_yolo(source: str) -> YoloFiles:
    """Find the files of a set; raises DataError if there is nothing of the kind, or no part to train on."""
    root = Path(source).expanduser()
    file = root if root.is_file() else _find_description(root)
    if file is not None:
        return _read_description(source, file)
    folders = _list_image_folders(source, root)
    if "train" not in folders:
        found = ", ".join(str(folder.relative_to(root)) for folder in folders.values()) or "none of them"
        raise DataError(
            f"data.source {source}: not YOLO's layout with a part to train on; looked for data.yaml, images/train/ "
            f"with labels/train/, train/images/ with train/labels/, and images/ with labels/, and found {found}"
        )
    images = {part: _list_images(folder) for part, folder in folders.items()}
    return YoloFiles(root, images, _read_class_list(root), "YOLO's format")


def _find_description(root: Path) -> Path | None:
    return next((root / name for name in _DESCRIPTIONS if (root / name).is_file()), None)


def _list_image_folders(source: str, root: Path) -> dict[Part, Path]:
    """Return the folder of images of each part that has a folder of labels beside it."""
    found: dict[Part, Path] = {}
    for part, name in match_parts(source, list_visible_folders(root / _IMAGES)).items():
        if (root / _LABELS / name).is_dir():
            found[part] = root / _IMAGES / name
    if found:
        return found
    for part, name in match_parts(source, list_visible_folders(root)).items():
        if (root / name / _IMAGES).is_dir() and (root / name / _LABELS).is_dir():
            found[part] = root / name / _IMAGES
    if found:
        return found
    # masks of segmentation lie in labels/ too, and are no text
    has_texts = any((root / _LABELS).glob("*.txt"))
    return {"train": root / _IMAGES} if has_texts and (root / _IMAGES).is_dir() else {}


def _read_description(source: str, file: Path) -> YoloFiles:
    """Read ``data.yaml``: where the parts are, and what the classes are called."""
    values = read_mapping(file, str(file))
    if "kpt_shape" in values:
        raise DataError(f"{file}: describes key points (kpt_shape), which are not read")
    names = _read_names(file, values.get("names"))
    images: dict[Part, tuple[str, ...]] = {}
    parts: tuple[Part, ...] = ("train", "val", "test")
    for part in parts:
        entries = values.get(part)
        if entries:
            images[part] = _list_entries(file, values.get("path"), entries)
    if "train" not in images:
        raise DataError(
            f"{file}: names no images to train on; train should be a folder, a list of folders or a text file"
        )
    return YoloFiles(file.parent, images, names, f"YOLO's format by {file.name}")


def _read_names(file: Path, names: Any) -> tuple[str, ...]:
    if names is None:
        return ()
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{file}: names should be a list of classes, or a mapping from 0, 1, ... to them")
    texts = tuple(map(str, names))
    for name in texts:
        if texts.count(name) > 1:
            raise DataError(f"{file}: names the class {name} twice")
    return texts


def _list_entries(file: Path, base: Any, entries: Any) -> tuple[str, ...]:
    """Return the images of one part: those of folders, and those that text files name, a line each."""
    found: list[str] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        path = _resolve(file, base, str(entry))
        if path.is_dir():
            found += _list_images(path)
        elif path.suffix == ".txt":
            lines = map(str.strip, read_text(path).splitlines())
            found += [os.path.normpath(path.parent / line) for line in filter(None, lines)]
        else:
            raise DataError(f"{file}: {entry} is neither a folder nor a text file of images")
    return tuple(found)


def _resolve(file: Path, base: Any, entry: str) -> Path:
    """Return the path that an entry means: below ``path``, below the file, or below it without a leading ``../``.

    Roboflow writes ``../train/images`` for a folder beside the file.
    """
    bases = [file.parent]
    if base is not None:
        bases.insert(0, file.parent / str(base))
    for folder in bases:
        for name in (entry, entry.removeprefix("../")):
            if (folder / name).exists():
                return folder / name
    raise DataError(f"{file}: {entry} is not there; looked in {', '.join(map(str, bases))}")


def _list_images(folder: Path) -> tuple[str, ...]:
    return tuple(os.path.normpath(folder / name) for name in list_image_files(folder))


def _read_class_list(root: Path) -> tuple[str, ...]:
    for folder in (root, root / _LABELS):
        for name in _CLASS_LISTS:
            if (folder / name).is_file():
                lines = map(str.strip, read_text(folder / name).splitlines())
                return tuple(filter(None, lines))
    return ()
