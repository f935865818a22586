"""Decode a large JPEG at a half, a quarter or an eighth of its width and height, which takes a fraction of the time.

JPEG keeps blocks of 8 x 8 pixels as frequencies, and libjpeg can turn the lowest of them into 4 x 4, 2 x 2 or 1 x 1
pixels directly. Resizing what comes out gives nearly what resizing all pixels gives, if it is still well above the
final size: at `MARGIN` times that, values of 8 bits differ by at most 8 levels, and on average by less than 0.75, on
photographs (tests/unit/data/test_data_reduced.py). Only prediction and serving do this. Training and evaluation read
every pixel.
"""

from __future__ import annotations

from PIL import Image

from ehm.data.decoding.orientation import read_orientation, turn_size

__all__ = ["MARGIN", "reduce_while_decoding"]

MARGIN = 2.5
"""The least ratio of a reduced image to the size that is needed, in both directions."""

_FORMATS = ("JPEG", "MPO")  # MPO is a JPEG with further images behind it, which many telephones write
_SCALES = (8, 4, 2)
"""The numbers by which libjpeg can divide width and height while it decodes, the largest first."""


def reduce_while_decoding(image: Image.Image, enough: tuple[int, int]) -> None:
    """Let Pillow decode ``image``, whose pixels have not been read yet, at a reduced size if it is a large JPEG.

    ``enough`` is the (height, width) of the upright image below which detail would be lost. The size is only reduced by
    a number that divides both width and height: otherwise the last pixels would stand for less than the others, and
    the image would be resized to slightly other proportions.
    """
    if image.format not in _FORMATS:
        return
    height, width = enough
    # as the file stores them: an image that lies on its side has them exchanged
    width, height = turn_size((width, height), read_orientation(image))
    for scale in _SCALES:
        divides = image.width % scale == 0 and image.height % scale == 0
        # the largest reduction that is still well above the final size
        if divides and image.width >= MARGIN * scale * width and image.height >= MARGIN * scale * height:
            image.draft(None, (image.width // scale, image.height // scale))
            return
