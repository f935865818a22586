"""Images that show whether two networks are the same: noise, and pictures like photographs.

Shapes: B images of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.data.channel_images import round_to_type
from ehm.deploy.bundle.manifest import Preprocessing
from ehm.deploy.bundle.preprocessing import create_eval_transform, normalise_pixels

__all__ = ["BATCHES", "ImageKind", "draw_images", "make_inputs"]

BATCHES = (1, 2, 5, 8)
"""Sizes of batches that are compared: alone, and with others, in numbers that are powers of two and one that is not."""
ImageKind = Literal["random", "natural"]


def draw_images(
    rng: np.random.Generator, batch: int, size: tuple[int, int], channels: int = 3
) -> Iterator[tuple[ImageKind, NDArray[np.float64]]]:
    """Yield white noise and pictures with the 1/f spectrum of photographs: (B, C, H, W), of standard deviation 1.

    Noise reaches every feature of a network, and smooth pictures those that photographs reach.
    """
    height, width = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf  # no mean, instead of a division by zero
    noise = rng.standard_normal((batch, channels, height, width))
    smooth = np.fft.irfft2(np.fft.rfft2(noise) / frequency, s=size)
    yield "random", noise
    yield "natural", smooth / smooth.std(axis=(1, 2, 3), keepdims=True)


def make_inputs(preprocessing: Preprocessing) -> Iterator[tuple[ImageKind, NDArray[Any], NDArray[np.float32]]]:
    """Yield the kind of image, the inputs of the session and those of the framework.

    The framework, and in most bundles the session, gets normalised (B, 3, H, W). A graph that takes bytes gets them in
    the size that it resizes to, so that it cuts and normalises them: what it makes of other sizes is Pillow's within a
    grey level, not within the tolerance.
    """
    rng = np.random.default_rng(0)
    size = preprocessing.cover if preprocessing.in_graph else preprocessing.image_size
    for batch in BATCHES:
        for kind, values in draw_images(rng, batch, size, preprocessing.channels):
            if preprocessing.in_graph:
                pixels = _to_pixels(values, preprocessing)
                yield kind, pixels, _crop_and_normalise(pixels, preprocessing)
            elif kind == "random":
                noise = values.astype(np.float32)
                yield kind, noise, noise
            else:
                normalised = normalise_pixels(_to_pixels(values, preprocessing), preprocessing)
                yield kind, normalised, normalised


def _crop_and_normalise(pixels: NDArray[Any], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Turn pixels (B, H, W, C) into what a framework gets of them: normalised (B, C, *image_size)."""
    transform = create_eval_transform(preprocessing)
    is_rgb = preprocessing.pixels.is_rgb
    cropped = np.stack([transform(Image.fromarray(image) if is_rgb else image) for image in pixels])
    return normalise_pixels(cropped, preprocessing)


def _to_pixels(values: NDArray[np.float64], preprocessing: Preprocessing) -> NDArray[Any]:
    """Turn (B, C, H, W) of standard deviation 1 into pixels (B, H, W, C) around the middle grey."""
    # 55 of 255 grey levels a standard deviation: few values are clipped, and the whole range is used
    levels = 128 + 55 * np.moveaxis(values, 1, -1)
    pixels = preprocessing.pixels
    return round_to_type(levels * (pixels.white / 255), pixels.dtype)
