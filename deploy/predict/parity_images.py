"""Images that show whether two networks are the same: noise, and pictures like photographs.

Shapes: B images of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.deploy.bundle.manifest import Preprocessing
from ehm.deploy.bundle.preprocessing import eval_transform, normalise_pixels

__all__ = ["BATCHES", "ImageKind", "draw_images", "make_inputs"]

BATCHES = (1, 2, 5, 8)
ImageKind = Literal["random", "natural"]


def draw_images(
    rng: np.random.Generator, batch: int, size: tuple[int, int]
) -> Iterator[tuple[ImageKind, NDArray[np.float64]]]:
    """Yield white noise and pictures with the 1/f spectrum of photographs: (B, 3, H, W), of standard deviation 1.

    Noise reaches every feature of a network, and smooth pictures those that photographs reach.
    """
    height, width = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf  # no mean, instead of a division by zero
    noise = rng.standard_normal((batch, 3, height, width))
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
        for kind, values in draw_images(rng, batch, size):
            if preprocessing.in_graph:
                pixels = _to_bytes(values)
                yield kind, pixels, _crop_and_normalise(pixels, preprocessing)
            elif kind == "random":
                noise = values.astype(np.float32)
                yield kind, noise, noise
            else:
                normalised = normalise_pixels(_to_bytes(values), preprocessing)
                yield kind, normalised, normalised


def _crop_and_normalise(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Turn bytes (B, H, W, 3) into what a framework gets of them: normalised (B, 3, *image_size)."""
    transform = eval_transform(preprocessing)
    cropped = np.stack([transform(Image.fromarray(image)) for image in pixels])
    return normalise_pixels(cropped, preprocessing)


def _to_bytes(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Turn (B, 3, H, W) of standard deviation 1 into bytes (B, H, W, 3) around the middle grey."""
    # 55 grey levels a standard deviation: few values are clipped, and the whole range is used
    return np.clip(np.rint(128 + 55 * np.moveaxis(values, 1, -1)), 0, 255).astype(np.uint8)
