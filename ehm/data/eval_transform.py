"""The transform of evaluation, prediction and serving: resize an image and cut its centre, with Pillow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.config.inputs import CropMode, InputSpec, Interpolation
from ehm.config.pixel_format import RGB_BYTES, PixelFormat
from ehm.data.channel_images import cut_out, resize_channels, round_to_type
from ehm.data.long_images import find_central_part
from ehm.data.transforms import RESAMPLING

__all__ = ["EvalTransform"]


@dataclass(frozen=True)
class EvalTransform:
    """Resize and crop the centre, with Pillow; nothing is random.

    ``image_size`` is (height, width). The image is resized to ``resize_to`` (height, width), in a way that
    ``crop_mode`` says:

    - ``center`` keeps the proportions and just covers ``resize_to``;
    - ``squash`` gives exactly ``resize_to``;
    - ``border`` keeps the proportions and just fits into ``resize_to``.

    Then ``image_size`` is cut from the centre; what lies outside of the resized image becomes ``fill``, a value for
    each channel of ``pixels``.
    Without ``resize_to`` MAE's rule holds: 256/224 of ``image_size`` up to 224 pixels, ``image_size`` itself beyond.
    The side that does not decide about the scale is rounded ``down``, as torchvision does, or to the ``nearest`` number
    of pixels, as timm does unless it covers a square. Of a very long image that is to cover, the central part is cut
    out first (:mod:`ehm.data.long_images`).
    """

    image_size: tuple[int, int]
    resize_to: tuple[int, int] | None = None
    crop_mode: CropMode = "center"
    interpolation: Interpolation = "bicubic"
    fill: tuple[float, ...] = (0, 0, 0)
    rounding: Literal["down", "nearest"] = "down"
    pixels: PixelFormat = RGB_BYTES

    @classmethod
    def from_spec(cls, image_size: tuple[int, int], spec: InputSpec) -> EvalTransform:
        """Return the transform that ``timm.data.create_transform`` makes for this description and size."""
        resize_to = spec.compute_resized_size(image_size)
        # timm leaves squares to torchvision's Resize; MAE's rule has always rounded down here
        rounds_down = spec.crop_mode == "center" and (spec.crop_pct is None or resize_to[0] == resize_to[1])
        fill: tuple[float, ...] = (0,) * spec.pixels.count
        if spec.crop_mode == "border":
            white = spec.pixels.white
            fill = tuple(white * value if spec.pixels.depth == "float" else round(white * value) for value in spec.mean)
        rounding: Literal["down", "nearest"] = "down" if rounds_down else "nearest"
        return cls(image_size, resize_to, spec.crop_mode, spec.interpolation, fill, rounding, spec.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every sample."""
        return (*self.image_size, self.pixels.count)

    @property
    def cover(self) -> tuple[int, int]:
        """Height and width in pixels that the image is resized to, before the crop."""
        return self.resize_to or InputSpec().compute_resized_size(self.image_size)

    def find_part(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return the box (left, top, right, bottom) of an image of that size that is resized: most often all of it."""
        if self.crop_mode == "center":
            return find_central_part(width, height, self.cover)
        return (0, 0, width, height)

    def cut_long_image(self, image: Image.Image) -> Image.Image:
        """Return the image, or the central part of one that is so long that resizing would take too much memory."""
        box = self.find_part(*image.size)
        if box == (0, 0, *image.size):
            return image
        return image.crop(box)

    def find_layout(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return (width, height) that an image of that size is resized to, and (left, top) of the crop in the result.

        The crop begins at negative numbers if the resized image is smaller than it.
        """
        resized_width, resized_height = self._find_resized_size(width, height)
        left = _find_crop_start(resized_width, self.image_size[1])
        top = _find_crop_start(resized_height, self.image_size[0])
        return (resized_width, resized_height), (left, top)

    def __call__(self, image: Any, rng: np.random.Generator | None = None) -> NDArray[Any]:
        """Return the sample (H, W, C) of an image of any size; a photograph is RGB or greyscale (mode ``L``)."""
        if isinstance(image, np.ndarray):
            return self._transform_channels(image)
        image = self.cut_long_image(image)
        height, width = self.image_size
        size, (left, top) = self.find_layout(*image.size)
        image = image.resize(size, RESAMPLING[self.interpolation])
        if image.mode == "L":  # only now, as one channel is resized in half of the time that three take
            image = image.convert("RGB")
        if width <= size[0] and height <= size[1]:  # the crop lies inside, which needs no canvas
            return np.asarray(image.crop((left, top, left + width, top + height)))
        red, green, blue = (int(value) for value in self.fill)
        canvas = Image.new("RGB", (width, height), (red, green, blue))
        canvas.paste(image, (-left, -top))
        return np.asarray(canvas)

    def _transform_channels(self, image: NDArray[Any]) -> NDArray[Any]:
        """Return the sample of an image that is no photograph."""
        left, top, right, bottom = self.find_part(image.shape[1], image.shape[0])
        size, place = self.find_layout(right - left, bottom - top)
        resized = resize_channels(image, size, RESAMPLING[self.interpolation], (left, top, right, bottom))
        # black if nothing else was said, whatever the number of channels
        fill = np.array(self.fill if any(self.fill) else 0)
        return cut_out(resized, place, self.image_size, round_to_type(fill, self.pixels.dtype))

    def _find_resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) after the resize of an image of this size."""
        cover_height, cover_width = self.cover
        if self.crop_mode == "squash":
            return cover_width, cover_height
        if self.rounding == "down":
            if width * cover_height < height * cover_width:
                return cover_width, height * cover_width // width
            return width * cover_height // height, cover_height
        # the same operations as in timm's ResizeKeepRatio, so that halves are rounded alike
        ratio_down = height / cover_height
        ratio_across = width / cover_width
        choose = max if self.crop_mode == "border" else min
        ratio = choose(ratio_down, ratio_across)
        # one pixel at least: a long thin image would vanish in "border", and Pillow cannot make an empty one
        return max(1, round(width / ratio)), max(1, round(height / ratio))


def _find_crop_start(resized: int, wanted: int) -> int:
    """Return the first pixel of a centred crop of ``wanted`` ones, as in torchvision: odd padding is longer behind."""
    if resized < wanted:
        return -((wanted - resized) // 2)
    return round((resized - wanted) / 2)
