"""A picture of detected objects: masks tinted, boxes with class and score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ehm.analysis.colours import PALETTE
from ehm.data.instances import Detections

__all__ = ["draw_objects"]

_LABEL_HEIGHT = 11
"""Pixels that a label stands above its box, the height of Pillow's default font."""


def draw_objects(
    image: NDArray[np.uint8], found: Detections, classes: Sequence[str], threshold: float = 0.5
) -> Image.Image:
    """Draw ``image`` (H, W, 3) with the objects whose score is ``threshold`` at least, the likeliest on top.

    Objects of a class have one colour.
    """
    # Scores fall, so the reversed order paints the likeliest object last.
    shown = np.flatnonzero(found.scores >= threshold)[::-1]
    pixels = image.astype(np.float32)
    if found.masks is not None:
        for index in shown:
            mask = found.masks[index]
            # the mean of image and colour, so that the object stays visible
            pixels[mask] = (pixels[mask] + PALETTE[found.labels[index] % len(PALETTE)]) / 2
    picture = Image.fromarray(pixels.round().astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    line_width = max(1, min(image.shape[:2]) // 200)
    for index in shown:
        colour = tuple(PALETTE[found.labels[index] % len(PALETTE)].tolist())
        left, top, right, bottom = found.boxes[index].tolist()
        pen.rectangle((left, top, right, bottom), outline=colour, width=line_width)
        label = f"{classes[found.labels[index]]} {found.scores[index]:.2f}"
        corner = (left, max(0.0, top - _LABEL_HEIGHT))
        pen.rectangle(pen.textbbox(corner, label), fill=(0, 0, 0))
        pen.text(corner, label, fill=colour)
    return picture
