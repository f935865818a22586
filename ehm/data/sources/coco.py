"""Images with annotated objects in COCO's format: its official folders, and a single file beside a folder of images.

:mod:`ehm.data.sources.coco_layouts` says which files are found.

Shapes: an image of H x W pixels has n objects.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.config import DetectionData
from ehm.data.decoding.decode import decode_image, read_head
from ehm.data.decoding.depth import ValueRange
from ehm.data.decoding.orientation import (
    Annotated,
    Sized,
    find_annotated,
    spread_numbers,
    turn_array,
    turn_boxes,
    turn_size,
)
from ehm.data.instances import Instances
from ehm.data.sources.base import Split
from ehm.data.sources.coco_checks import check_images_and_categories, find_problems, is_known
from ehm.data.sources.coco_layouts import find_annotations
from ehm.data.sources.coco_shapes import Annotation, clip_box, decode_mask, import_mask_tools, read_size, turn_object
from ehm.data.sources.image_files import list_image_files
from ehm.data.sources.inventory import Unused, describe_layout
from ehm.data.threads import map_in_threads
from ehm.errors import BrokenImage, DataError
from ehm.storage.names import escape_undecodable
from ehm.storage.reading import describe_value, join_some, read_json, shorten

__all__ = ["CocoSource", "open_coco", "read_annotations", "read_coco"]


@dataclass(frozen=True)
class CocoSource:
    """Numbered images below ``root``, each with its ``annotations``; classes are the categories, ordered by their id.

    ``numbers`` gives the class of each category's id. ``unusable`` names the objects that have no area inside their
    image: they count when a detector is measured, as in pycocotools, and are left out of training. ``annotated`` says
    which pixels of an image its objects were drawn on. ``value_range`` is that of
    :func:`ehm.data.decoding.decode.decode_image`.
    """

    root: Path
    images: tuple[Mapping[str, Any], ...]
    annotations: tuple[tuple[Annotation, ...], ...]
    classes: tuple[str, ...]
    numbers: Mapping[int, int]
    split: Split
    unusable: tuple[str, ...]
    masks: bool
    notes: tuple[str, ...] = ()
    annotated: Annotated = "stored"
    value_range: ValueRange = None

    @property
    def labels(self) -> None:
        """An image has no label of its own."""
        return

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """Return the path of the file."""
        return os.path.join(self.root, self.images[index]["file_name"])

    def list_trainable_objects(self, index: int) -> list[Annotation]:
        """Return the objects of an image that a detector learns: those with an area inside it, and no crowds."""
        size = read_size(self.images[index])
        return [
            each for each in self.annotations[index] if not each.get("iscrowd") and clip_box(each, size) is not None
        ]

    def load(self, index: int) -> tuple[NDArray[np.uint8], Instances]:
        """Read the image (H, W, 3) as it is seen and its trainable objects, boxes cut at its borders; BrokenImage."""
        height, width = read_size(self.images[index])
        image = np.array(decode_image(self.name(index), value_range=self.value_range))
        orientation = self._find_orientation(index)
        objects = self.list_trainable_objects(index)
        # a shape also without objects
        boxes = np.array([clip_box(each, (height, width)) for each in objects], np.float32).reshape(-1, 4)
        boxes = turn_boxes(boxes, (width, height), orientation)
        labels = np.array([self.numbers[each["category_id"]] for each in objects], np.int64)
        if not self.masks:
            return image, Instances(boxes, labels)
        # filled one by one: a list would take twice the memory
        masks = np.zeros((len(objects), *image.shape[:2]), bool)
        for mask, each in zip(masks, objects, strict=True):
            mask[:] = turn_array(decode_mask(each["segmentation"], height, width), orientation)
        return image, Instances(boxes, labels, masks)

    def turn_annotations(self, index: int) -> tuple[Annotation, list[Annotation]]:
        """Return the record of an image and its objects, in the pixels of the image as it is seen.

        Masks of an image that is turned become run-length codes. Raises BrokenImage if it cannot be read.
        """
        record = self.images[index]
        objects = self.annotations[index]
        orientation = self._find_orientation(index)
        if orientation == 1:
            return record, list(objects)
        height, width = read_size(record)
        seen_width, seen_height = turn_size((width, height), orientation)
        turned = []
        for each in objects:
            turned.append(turn_object(each, (height, width), orientation))
        return {**record, "width": seen_width, "height": seen_height}, turned

    def _find_orientation(self, index: int) -> int:
        """Return the orientation that an image's objects are turned by; BrokenImage if their sizes do not fit."""
        height, width = read_size(self.images[index])
        sized = Sized(self.name(index), read_head(self.name(index)), (width, height))
        readings = sized.fitting_readings
        if self.annotated in readings:
            return sized.head.orientation if self.annotated == "stored" else 1
        actual = sized.head.seen_size if self.annotated == "upright" else sized.head.size
        advice = f"; data.annotated={readings[0]} reads them otherwise" if readings else ""
        raise BrokenImage(
            f"{sized.name}: has {actual[0]} x {actual[1]} pixels (width x height), and its annotations are for "
            f"{width} x {height}{advice}"
        )


def open_coco(config: DetectionData, split: Split, masks: bool = True) -> CocoSource:
    """Open ``config.source`` as :func:`read_coco` does, with all that ``config`` says of its images."""
    source = replace(read_coco(config.source, split, masks, config.layout), value_range=config.range)
    if config.annotated != "auto":
        return replace(source, annotated=config.annotated)
    sized = map_in_threads(partial(_read_sized, source), spread_numbers(len(source)), config.workers)
    annotated, note = find_annotated(config.source, filter(None, sized))
    return replace(source, annotated=annotated, notes=(*source.notes, *note))


def read_coco(source: str, split: Split, masks: bool = True, layout: str = "auto") -> CocoSource:
    """Open ``source`` in one of the layouts of :mod:`ehm.data.sources.coco_layouts`.

    ``split`` is "train", "val" or "all"; if there is no validation part, "train" gives all that there is (``.split`` of
    the source then is "all") and "val" raises. Without ``masks`` objects need no segmentation.
    Raises DataError if there is no such file, or if it has objects of no known category or image, without a box
    or, with ``masks``, without a mask: all of them counted, the first ones named.
    """
    found = find_annotations(source, split, layout)
    opened = read_annotations(found.file, found.folder, found.split, masks)
    kind = f"COCO's format by {found.file.relative_to(Path(source).expanduser())}"
    notes = [describe_layout(kind, found.parts, len(opened.classes))]
    unused = Unused()
    # as the folder is listed: a file may be named ./a.jpg
    named = {os.path.normpath(image["file_name"]) for image in opened.images}
    for file in list_image_files(found.folder, unused=unused):
        if file not in named:
            unused.add(f"not named in {found.file.name}", file)
    if unused:
        notes.append(unused.describe())
    return replace(opened, notes=tuple(notes))


def read_annotations(file: Path, folder: Path, split: Split, masks: bool) -> CocoSource:
    """Read the annotations in ``file`` of the images in ``folder``; raises DataError as :func:`read_coco` does."""
    import_mask_tools()  # an absent package is reported before a large file is read
    if not folder.is_dir():
        raise DataError(f"{file}: its images should lie in {folder}, and there is no such folder")
    content = read_json(file, what="annotations in COCO's format")
    try:
        images = tuple(sorted(content["images"], key=lambda image: image["id"]))
        places: dict[Any, int] = {}
        names: list[str] = []
        for index, image in enumerate(images):
            places[image["id"]] = index
            names.append(os.fspath(image["file_name"]))
        sizes = list(map(read_size, images))
        categories = sorted((each["id"], os.fspath(each["name"])) for each in content["categories"])
        objects: list[Annotation] = list(map(dict, content["annotations"]))
    except KeyError as error:
        raise DataError(f"{file}: not annotations in COCO's format: {error} is missing") from None
    except (ValueError, TypeError, OverflowError) as error:
        reason = f"a value is of the wrong kind ({shorten(str(error))})"
        raise DataError(f"{file}: not annotations in COCO's format: {reason}") from None
    check_images_and_categories(file, images, names, sizes, categories)
    # ids of categories have gaps, classes have none
    ids, class_names = zip(*categories, strict=True)
    numbers = dict(zip(ids, range(len(ids)), strict=True))
    by_image: list[list[Annotation]] = [[] for _ in images]
    problems = []
    unusable = []
    for number, each in enumerate(objects):
        about = f"annotation {shorten(str(each.get('id', f'number {number}')))}"
        if not is_known(each.get("image_id"), places):
            problems.append(f"{about}: no image has the id {describe_value(each.get('image_id'))}")
            continue
        index = places[each["image_id"]]
        about = f"{about} of {names[index]}"
        for problem in find_problems(each, numbers, sizes[index], masks):
            problems.append(f"{about}: {problem}")
        # a box with a problem may have no numbers to clip
        if not problems and clip_box(each, sizes[index]) is None:
            height, width = sizes[index]
            unusable.append(f"{about}: its box {each['bbox']} has no area inside {width} x {height} pixels")
        by_image[index].append(each)
    if problems:
        raise DataError(f"{file}: {join_some(problems)}")
    classes = tuple(map(escape_undecodable, class_names))
    return CocoSource(folder, images, tuple(map(tuple, by_image)), classes, numbers, split, tuple(unusable), masks)


def _read_sized(source: CocoSource, index: int) -> Sized | None:
    """Return the head of an image and the size that its annotations are for; None if it cannot be read."""
    height, width = read_size(source.images[index])
    try:
        return Sized(source.name(index), read_head(source.name(index)), (width, height))
    except BrokenImage:
        return None
