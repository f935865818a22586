"""Images with masks: ADE20K as published, and any folder of pairs.

    images/training/*.jpg      annotations/training/*.png      objectInfo150.txt    ADE20K (ADEChallengeData2016)

    images/*.jpg               masks/*.png                     classes.txt          a folder of pairs
    train/images, train/masks  val/images, val/masks           classes.txt          the same, divided
    images/train, masks/train  images/val, masks/val           classes.txt          the same, the other way round

An image and its mask have the same name but for the suffix; ``annotations`` and ``labels`` may stand for ``masks``, and
the parts may be spelled as :mod:`ehm.data.sources.parts` knows them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.config import SegmentationData
from ehm.data.decoding.decode import decode_image, read_head
from ehm.data.decoding.depth import ValueRange
from ehm.data.decoding.orientation import Annotated, Sized, find_annotated, spread_numbers, turn_array
from ehm.data.sources.base import Names, Split
from ehm.data.sources.class_names import read_ade20k_classes, read_classes_file
from ehm.data.sources.image_files import list_image_files
from ehm.data.sources.inventory import Unused, describe_layout
from ehm.data.sources.mask_counts import MaskCounts
from ehm.data.sources.masks import IGNORED, read_mask
from ehm.data.sources.pair_layouts import PairFolders, find_pair_folders, is_mask_file, recognise_pairs
from ehm.data.sources.parts import Part, no_validation_part
from ehm.data.threads import map_in_threads
from ehm.errors import BrokenImage, DataError

__all__ = ["Pair", "PairSource", "check_pairs", "open_pairs"]

_DRAWN_ON: dict[Annotated, str] = {"stored": "stored pixels", "upright": "image as it is seen"}


class Pair(NamedTuple):
    """An RGB image and the class of each of its pixels (H, W), 255 where that is ignored."""

    image: Image.Image
    labels: NDArray[np.uint8]


@dataclass(frozen=True)
class PairSource:
    """Implements :class:`ehm.data.sources.base.Source`: images and their masks below ``root``.

    ``zero_ignored`` is ADE20K's numbering. ``named`` says that somebody gave the classes names. ``annotated`` says
    which pixels of an image its mask was drawn on, if the mask has no orientation of its own. ``value_range`` is that
    of :func:`ehm.data.decoding.decode.decode_image`.
    """

    root: Path
    images: Names
    masks: Names
    classes: tuple[str, ...]
    split: Split
    zero_ignored: bool = False
    named: bool = True
    notes: tuple[str, ...] = ()
    annotated: Annotated = "stored"
    value_range: ValueRange = None

    @property
    def labels(self) -> None:
        """An image has no single class."""
        return None

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> Pair:
        """Read image and mask as they are seen; raises BrokenImage if one is unreadable or they do not fit."""
        image = decode_image(self.name(index), value_range=self.value_range)
        labels, problem = self.read_labels(index)
        if problem:
            raise BrokenImage(problem)
        return Pair(image, labels)

    def read_labels(self, index: int) -> tuple[NDArray[np.uint8], str]:
        """Read the labels (H, W) of an image as it is seen, and the problem that keeps them from it, empty if none.

        Raises BrokenImage if image or mask cannot be read.
        """
        file = self.mask(index)
        labels = read_mask(file, self.zero_ignored)
        head = read_head(self.name(index))
        # a mask with an orientation of its own has been turned by it
        if head.orientation != 1 and self.annotated == "stored" and read_head(file).orientation == 1:
            labels = turn_array(labels, head.orientation)
        problem = _find_misfit(file, labels, head.seen_size, len(self.classes), self.zero_ignored)
        # a mask of exchanged sides was drawn on the other pixels
        if problem and labels.shape == head.seen_size and head.orientation != 1:
            other: Annotated = "upright" if self.annotated == "stored" else "stored"
            problem += f" as it is seen; data.annotated={other} if it was drawn on the {_DRAWN_ON[other]}"
        return np.ascontiguousarray(labels), problem

    def name(self, index: int) -> str:
        """Return the path of the image."""
        return os.path.join(self.root, self.images[index])

    def mask(self, index: int) -> str:
        """Return the path of the mask."""
        return os.path.join(self.root, self.masks[index])


def open_pairs(config: SegmentationData, split: Split = "all") -> PairSource:
    """Open the part ``split`` of ``config.source``; "all" if it has no validation part, and DataError for "val" then.

    The test part is never read. Raises DataError if there is none, if an image has no mask, and if classes cannot be
    told.
    """
    root, is_ade20k = recognise_pairs(config.source, config.layout)
    if is_ade20k:
        classes = read_ade20k_classes(root)
    else:
        classes = read_classes_file(root)
    found = find_pair_folders(config.source, root)
    if split == "val" and "val" not in found.folders:
        raise no_validation_part(config.source)
    if "val" not in found.folders:
        split = "all"
    chosen: list[Part] = ["train", "val"] if split == "all" else [split]
    unused = Unused()
    images: list[str] = []
    masks: list[str] = []
    for part in chosen:
        if part in found.folders:
            pairs = _match_masks(config.source, root, *found.folders[part], unused)
            images += pairs[0]
            masks += pairs[1]
    source = PairSource(
        root, Names(images), Names(masks), classes, split, is_ade20k, bool(classes), value_range=config.range
    )
    source = _decide_orientation(config, source)
    if not classes:
        source = _number_classes(config, source)
    return replace(source, notes=(*_describe_source(source, found, unused), *source.notes))


def _describe_source(source: PairSource, found: PairFolders, unused: Unused) -> tuple[str, ...]:
    kind = "ADE20K" if source.zero_ignored else "images and masks"
    notes = [describe_layout(kind, list(found.names.values()), len(source.classes))]
    if "test" in found.folders:
        test_images = list_image_files(found.root, str(found.folders["test"][0].relative_to(found.root)))
        unused.add_all("in the test part, which is read only if data.source names it", test_images)
    for name in found.without_masks:
        unused.add_all("without a folder of masks", list_image_files(found.root, name))
    if unused:
        notes.append(unused.describe())
    return tuple(notes)


def check_pairs(
    source: PairSource, indices: Iterable[int], threads: int, counts: MaskCounts | None = None
) -> list[str]:
    """Return what is wrong with the masks of those images, a sentence each that begins with the file.

    Images that cannot be read are left out: the loader replaces them. The values of masks are added to ``counts``.
    """
    return list(filter(None, map_in_threads(partial(_check_pair, source, counts), indices, threads)))


def _check_pair(source: PairSource, counts: MaskCounts | None, index: int) -> str:
    try:
        labels, problem = source.read_labels(index)
    except BrokenImage as error:
        is_about_mask = str(error).startswith(source.mask(index))
        return str(error) if is_about_mask else ""
    if counts is not None:
        counts.add(labels)
    return problem


def _find_misfit(file: str, labels: NDArray[np.uint8], size: tuple[int, int], classes: int, zero_ignored: bool) -> str:
    """Describe what keeps a mask from its image of (width, height); empty if it fits."""
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


def _decide_orientation(config: SegmentationData, source: PairSource) -> PairSource:
    """Return the source with what is stated, or what sizes tell, about the pixels that masks were drawn on."""
    if config.annotated != "auto":
        return replace(source, annotated=config.annotated)
    sized = map_in_threads(partial(_read_sized, source), spread_numbers(len(source)), config.workers)
    annotated, note = find_annotated(config.source, filter(None, sized))
    return replace(source, annotated=annotated, notes=note)


def _read_sized(source: PairSource, index: int) -> Sized | None:
    """Return the head of an image and the size of its mask; None if they cannot tell how the mask was drawn."""
    try:
        head = read_head(source.name(index))
        if head.orientation == 1:
            return None
        mask = read_head(source.mask(index))
    except BrokenImage:
        return None
    if mask.orientation != 1:
        return None  # it is turned by itself
    return Sized(source.mask(index), head, mask.size)


def _match_masks(source: str, root: Path, images: Path, masks: Path, unused: Unused) -> tuple[list[str], list[str]]:
    """Return the paths below ``root`` of all images, sorted, and of their masks."""
    passed_over = Unused()
    files = list(list_image_files(images, unused=passed_over))  # relative to ``images``
    unused.merge(passed_over.rows(), f"{images.relative_to(root)}/")
    if not files:
        raise DataError(f"data.source {source}: no images in {images}")
    known: dict[str, str] = {}
    for file in filter(is_mask_file, list_image_files(masks)):
        # by the name without suffix: photographs are mostly JPEGs, and masks are not
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
    for file in sorted(set(known.values()) - set(found)):
        unused.add("of masks without an image", str((masks / file).relative_to(root)))
    image_paths = [str((images / file).relative_to(root)) for file in files]
    mask_paths = [str((masks / file).relative_to(root)) for file in found]
    return image_paths, mask_paths


def _number_classes(config: SegmentationData, source: PairSource) -> PairSource:
    """Name the classes by their numbers, from 0 to the largest value in any mask: nothing else says their names."""
    largest = max(map_in_threads(partial(_find_largest, source), range(len(source)), config.workers), default=-1)
    if largest < 0:
        problems = check_pairs(source, range(1), 0)
        if problems:
            raise DataError(f"data.source {config.source}: none of its masks can be used: {problems[0]}")
    if largest < 1:
        counts = MaskCounts()
        check_pairs(source, range(len(source)), config.workers, counts)
        problem = "one class only; segmentation needs two at least"
        if counts.masks[IGNORED]:
            problem = f"the values 0 and {IGNORED} only, and {IGNORED} is ignored; write the second class as 1"
        raise DataError(f"data.source {config.source}: its masks have {problem}")
    classes = tuple(map(str, range(largest + 1)))
    return replace(source, classes=classes, named=False)


def _find_largest(source: PairSource, index: int) -> int:
    try:
        labels = read_mask(source.mask(index))
    except BrokenImage:
        return -1
    # a mask may be ignored as a whole
    counted = labels[labels != IGNORED]
    return int(counted.max()) if counted.size else -1
