"""Images with masks: ADE20K as published, and any folder of pairs.

    images/training/*.jpg      annotations/training/*.png      objectInfo150.txt    ADE20K (ADEChallengeData2016)

    images/*.jpg               masks/*.png                     classes.txt          a folder of pairs
    train/images, train/masks  val/images, val/masks           classes.txt          the same, divided
    images/train, masks/train  images/val, masks/val           classes.txt          the same, the other way round

An image and its mask have the same name but for the suffix; ``annotations`` and ``labels`` may stand for ``masks``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.config import SegmentationData
from ehm.data.ade20k import CLASSES
from ehm.data.decode import decode, upright_size
from ehm.data.image_files import image_files
from ehm.data.masks import IGNORED, MASK_SUFFIXES, read_mask
from ehm.data.source import Names, Split
from ehm.data.threads import in_threads
from ehm.errors import BrokenImage, DataError

__all__ = ["Pair", "PairSource", "check", "open_pairs"]

_PARTS = {"train": ("train", "training"), "val": ("val", "validation")}
_MASKS = ("masks", "annotations", "labels")
_ADE20K = "ADEChallengeData2016"


class Pair(NamedTuple):
    """An RGB image and the class of each of its pixels (H, W), 255 where that is ignored."""

    image: Image.Image
    labels: NDArray[np.uint8]


@dataclass(frozen=True)
class PairSource:
    """Implements :class:`ehm.data.source.Source`: images and their masks below ``root``.

    ``zero_ignored`` is ADE20K's numbering. ``named`` says that somebody gave the classes names.
    """

    root: Path
    images: Names
    masks: Names
    classes: tuple[str, ...]
    split: Split
    zero_ignored: bool = False
    named: bool = True

    @property
    def labels(self) -> None:
        """An image has no single class."""
        return None

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> Pair:
        """Image and mask; raises BrokenImage where one cannot be read, or they do not fit together."""
        image, file = decode(self.name(index)), self.mask(index)
        labels = read_mask(file, self.zero_ignored)
        if wrong := _misfit(file, labels, image.size, len(self.classes), self.zero_ignored):
            raise BrokenImage(wrong)
        return Pair(image, labels)

    def name(self, index: int) -> str:
        """The path of the image."""
        return os.path.join(self.root, self.images[index])

    def mask(self, index: int) -> str:
        """The path of the mask."""
        return os.path.join(self.root, self.masks[index])


def open_pairs(config: SegmentationData, split: Split = "all") -> PairSource:
    """The part ``split`` of ``config.source``; "all" where it has no parts of its own, and DataError for "val" then.

    Raises DataError where there is none, where an image has no mask, and where classes cannot be told.
    """
    root = Path(config.source).expanduser()
    if not root.is_dir():
        wrong = "is a file, not a folder" if root.exists() else "there is no such folder"
        raise DataError(f"data.source {config.source}: {wrong}")
    official = _find_ade20k(root)
    if config.layout == "ade20k" and official is None:
        raise DataError(f"data.source {config.source}: not ADE20K; looked for images/training and annotations/training")
    if config.layout != "pairs" and official is not None:
        return _open(config, official, split, _ade20k_classes(official), zero_ignored=True)
    return _open(config, root, split, _classes_file(root), zero_ignored=False)


def check(source: PairSource, indices: Iterable[int], threads: int) -> list[str]:
    """What is wrong with the masks of those images, a sentence each that begins with the file.

    Images that cannot be read are left out: the loader replaces them.
    """
    return [wrong for wrong in in_threads(partial(_check, source), indices, threads) if wrong]


def _check(source: PairSource, index: int) -> str:
    file = source.mask(index)
    try:
        labels = read_mask(file, source.zero_ignored)
    except BrokenImage as error:
        return str(error)
    try:
        size = upright_size(source.name(index))
    except BrokenImage:
        return ""
    return _misfit(file, labels, size, len(source.classes), source.zero_ignored)


def _misfit(file: str, labels: NDArray[np.uint8], size: tuple[int, int], classes: int, zero_ignored: bool) -> str:
    """What keeps a mask from its image of (width, height); nothing where it fits."""
    if labels.shape != size[::-1]:
        return f"{file}: is {labels.shape[1]} x {labels.shape[0]} pixels, and its image {size[0]} x {size[1]}"
    wrong = np.unique(labels[(labels >= classes) & (labels != IGNORED)])
    if not len(wrong):
        return ""
    first = int(zero_ignored)
    return (
        f"{file}: has the value {int(wrong[0]) + first}, and the {classes} classes are {first} to "
        f"{classes - 1 + first} ({IGNORED}{' and 0 are' if zero_ignored else ' is'} ignored)"
    )


def _find_ade20k(root: Path) -> Path | None:
    for place in (root, root / _ADE20K):
        if (place / "images" / "training").is_dir() and (place / "annotations" / "training").is_dir():
            return place
    return None


def _open(
    config: SegmentationData, root: Path, split: Split, classes: tuple[str, ...], zero_ignored: bool
) -> PairSource:
    parts = _folders(root)
    if not parts:
        raise DataError(
            f"data.source {config.source}: no folder images/ with {', '.join(f'{name}/' for name in _MASKS)} beside it"
        )
    if "all" in parts:
        split, chosen = _undivided(config.source, split), ["all"]
    else:
        chosen = [part for part in parts if split in ("all", part)]
    if not chosen:
        raise DataError(f"data.source {config.source}: has no part {split}/")
    images, masks = [], []
    for part in chosen:
        found = _pair(config.source, root, *parts[part])
        images += found[0]
        masks += found[1]
    source = PairSource(root, Names(images), Names(masks), classes, split, zero_ignored, bool(classes))
    return source if classes else _numbered(config, source)


def _undivided(source: str, split: Split) -> Split:
    if split == "val":
        raise DataError(f"data.source {source}: has no validation part of its own (a folder val/ beside train/)")
    return "all"


def _folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Folders of images and of masks of each part; "all" where there are none. No part without both."""
    found: dict[str, tuple[Path, Path]] = {}
    for masks in _MASKS:
        for part, names in _PARTS.items():
            for name in names:
                outside = root / "images" / name, root / masks / name
                inside = root / name / "images", root / name / masks
                for pair in (outside, inside):
                    if pair[0].is_dir() and pair[1].is_dir():
                        found.setdefault(part, pair)
        if (root / "images").is_dir() and (root / masks).is_dir() and not found:
            found["all"] = root / "images", root / masks
    return found if "train" in found or "all" in found else {}


def _pair(source: str, root: Path, images: Path, masks: Path) -> tuple[list[str], list[str]]:
    """Paths below ``root`` of all images, sorted, and of their masks."""
    files = list(image_files(images))
    if not files:
        raise DataError(f"data.source {source}: no images in {images}")
    known: dict[str, str] = {}
    for file in filter(_is_mask, image_files(masks)):
        other = known.setdefault(os.path.splitext(file)[0], file)
        if other != file:
            raise DataError(f"data.source {source}: {other} and {file} in {masks} have one name; which is the mask?")
    missing = [file for file in files if os.path.splitext(file)[0] not in known]
    if missing:
        stem = os.path.splitext(missing[0])[0]
        raise DataError(
            f"data.source {source}: {len(missing)} of {len(files)} images in {images} have no mask in {masks}: "
            f"{missing[0]} needs {stem}.png there"
        )
    found = [known[os.path.splitext(file)[0]] for file in files]
    return [str((images / file).relative_to(root)) for file in files], [
        str((masks / file).relative_to(root)) for file in found
    ]


def _is_mask(file: str) -> bool:
    return os.path.splitext(file)[1].lower() in MASK_SUFFIXES


def _numbered(config: SegmentationData, source: PairSource) -> PairSource:
    """Classes 0 to the largest value in any mask, for want of names."""
    largest = max(in_threads(partial(_largest, source), range(len(source)), config.workers), default=-1)
    if largest < 0 and (wrong := check(source, range(1), 0)):
        raise DataError(f"data.source {config.source}: none of its masks can be used: {wrong[0]}")
    if largest < 1:
        raise DataError(
            f"data.source {config.source}: its masks have {'one class' if largest == 0 else 'no class'} only; "
            "segmentation needs two at least"
        )
    classes = tuple(map(str, range(largest + 1)))
    return PairSource(source.root, source.images, source.masks, classes, source.split, named=False)


def _largest(source: PairSource, index: int) -> int:
    try:
        labels = read_mask(source.mask(index))
    except BrokenImage:
        return -1
    return int(np.max(labels, where=labels != IGNORED, initial=0)) if (labels != IGNORED).any() else -1


def _classes_file(root: Path) -> tuple[str, ...]:
    """Names from classes.txt, a line each; none where there is no such file."""
    file = root / "classes.txt"
    if not file.is_file():
        return ()
    names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    return _distinct(file, [name for name in names if name])


def _ade20k_classes(root: Path) -> tuple[str, ...]:
    """The first name of each class in the table that ADE20K brings along (number, ratio, train, val, names)."""
    file = root / "objectInfo150.txt"
    if not file.is_file():
        return CLASSES
    rows = [line.split(maxsplit=4) for line in file.read_text(encoding="utf-8").splitlines()]
    names = [row[4].split(",")[0].strip() for row in rows if len(row) == 5 and row[0].isdigit()]
    return tuple(names) if len(set(names)) == len(names) == len(CLASSES) else CLASSES


def _distinct(file: Path, names: Sequence[str]) -> tuple[str, ...]:
    if not 2 <= len(names) <= IGNORED:
        raise DataError(f"{file}: names {len(names)} classes; a mask of 8 bits has 2 to {IGNORED}")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"{file}: names the class {twice[0]} twice")
    return tuple(names)
