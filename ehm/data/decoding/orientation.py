"""Turn images, maps of labels and boxes from how they are stored to how they are seen, by EXIF's eight orientations.

EXIF 2.32, section 4.6.4, and TIFF 6.0, page 36, say where the stored first row and first column lie in the picture.
Each orientation is undone by mirroring the stored columns, mirroring the stored rows, and then exchanging both axes.

Shapes: a stored image of H x W pixels, n boxes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.errors import DataError

__all__ = [
    "Annotated",
    "Head",
    "Sized",
    "find_annotated",
    "read_orientation",
    "spread_numbers",
    "turn_array",
    "turn_boxes",
    "turn_image",
    "turn_size",
]

Annotated = Literal["stored", "upright"]
"""The pixels that an annotation was drawn on: those stored in the file, or those of the image as it is seen."""

ORIENTATION_TAG = 0x0112
"""The number of the orientation in EXIF and in TIFF."""
_STEPS: dict[int, tuple[bool, bool, bool]] = {
    1: (False, False, False),
    2: (True, False, False),
    3: (True, True, False),
    4: (False, True, False),
    5: (False, False, True),
    6: (False, True, True),
    7: (True, True, True),
    8: (True, False, True),
}
"""For each orientation, whether to mirror the columns, to mirror the rows, and to exchange the axes then."""
_MAX_LOOKED_AT = 1000
"""Number of images that are looked at to find out how all annotations of a source were drawn."""
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Head:
    """The ``size`` (width, height) of an image as it is stored, and its EXIF ``orientation``, 1 to 8."""

    size: tuple[int, int]
    orientation: int

    @property
    def seen_size(self) -> tuple[int, int]:
        """Width and height of the image as it is seen, which is how it is decoded."""
        return turn_size(self.size, self.orientation)


@dataclass(frozen=True)
class Sized:
    """The ``head`` of the image ``name``, and the ``size`` (width, height) that its annotation is for."""

    name: str
    head: Head
    size: tuple[int, int]

    @property
    def fitting_readings(self) -> tuple[Annotated, ...]:
        """The readings under which image and annotation have the same size: both, one or none of them."""
        fitting: list[Annotated] = []
        if self.head.size == self.size:
            fitting.append("stored")
        if self.head.seen_size == self.size:
            fitting.append("upright")
        return tuple(fitting)


def spread_numbers(count: int) -> list[int]:
    """Return the numbers of at most a thousand of ``count`` images, spread evenly."""
    if not count:
        return []
    return np.unique(np.linspace(0, count - 1, min(count, _MAX_LOOKED_AT)).round().astype(int)).tolist()


def read_orientation(image: Image.Image) -> int:
    """Return the orientation of one of Pillow's images that is left to undo; 1 if its metadata are damaged.

    Metadata that stand behind the pixels of a PNG file are known once the image is loaded.
    """
    try:
        # PngImageFile's own getexif() would load the image, which takes as long as decoding it
        orientation = Image.Image.getexif(image).get(ORIENTATION_TAG)
    except Exception:  # damaged metadata do not make the picture unusable
        return 1
    return orientation if orientation in _STEPS else 1


def turn_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Return the width and height as seen of an image of that stored ``size`` (width, height)."""
    return (size[1], size[0]) if _STEPS[orientation][2] else size


def turn_image(image: Image.Image, orientation: int) -> Image.Image:
    """Return the image as it is seen."""
    if orientation in _TRANSPOSE:
        return image.transpose(_TRANSPOSE[orientation])
    return image


def turn_array(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return the pixels, or the labels of pixels, (H, W, ...) of a stored image as they are seen: a view of them."""
    mirror_columns, mirror_rows, exchange = _STEPS[orientation]
    if mirror_columns:
        pixels = pixels[:, ::-1]
    if mirror_rows:
        pixels = pixels[::-1]
    return pixels.swapaxes(0, 1) if exchange else pixels


def turn_boxes(boxes: NDArray[Any], size: tuple[int, int], orientation: int) -> NDArray[Any]:
    """Return boxes (n, 4) of left, top, right, bottom, in a stored image of ``size`` (width, height), as seen."""
    mirror_columns, mirror_rows, exchange = _STEPS[orientation]
    turned = boxes.copy()
    # mirroring makes the right border the left one
    if mirror_columns:
        turned[:, [0, 2]] = size[0] - turned[:, [2, 0]]
    if mirror_rows:
        turned[:, [1, 3]] = size[1] - turned[:, [3, 1]]
    return turned[:, [1, 0, 3, 2]] if exchange else turned


def find_annotated(source: str, images: Iterable[Sized]) -> tuple[Annotated, tuple[str, ...]]:
    """Find out from sizes which pixels the annotations of ``images`` were drawn on, and what to tell the user.

    Only images that EXIF turns by 90 degrees and that are no squares can tell. If none of them does, annotations are
    taken to be drawn on the stored pixels, as COCO's are. There is one sentence to tell, or none. Raises DataError,
    which names ``source`` and two images, if some tell one thing and some the other.
    """
    turned = 0
    examples: dict[Annotated, Sized] = {}
    for image in images:
        if image.head.orientation == 1:
            continue
        turned += 1
        # a square fits both readings, and a wrong file fits none
        if len(image.fitting_readings) == 1:
            examples.setdefault(image.fitting_readings[0], image)
    if len(examples) == 2:
        raise DataError(
            f"data.source {source}: the annotations of {examples['stored'].name} have the size of the stored image, "
            f"those of {examples['upright'].name} the size of the image as EXIF turns it; they cannot all be right, "
            "unless data.annotated=stored or data.annotated=upright says how to read them"
        )
    if "upright" in examples:
        sentence = (
            f"data.source {source}: EXIF turns {turned} of the images looked at, and sizes tell that annotations "
            "were drawn on the images as they are seen; data.annotated=upright says the same for all of them"
        )
        return "upright", (sentence,)
    if turned and not examples:
        sentence = (
            f"data.source {source}: EXIF turns or mirrors {turned} of the images looked at, and sizes do not tell "
            "which pixels their annotations were drawn on: they are taken for those of the stored pixels, and turned "
            "with them; data.annotated=upright if they were drawn on the images as they are seen"
        )
        return "stored", (sentence,)
    return "stored", ()
