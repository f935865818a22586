"""RandAugment (Cubuk et al., 2020), random erasing (Zhong et al., 2020) and colour jitter.

All follow timm and torchvision, as MAE and BEiT use them. The operations and their strengths are timm's, on PIL images;
randomness comes from the NumPy generator of the sample.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from ehm.data.channel_images import round_to_type
from ehm.errors import ConfigError

__all__ = ["OPERATIONS", "RandAugment", "RandomErasing", "jitter_colors", "scale_strength"]

Colour = tuple[int, int, int]
Operation = Callable[[Image.Image, float, Colour], Image.Image]

_MOST_MAGNITUDE = 10.0
"""The magnitude at which an operation is at its strongest."""
_MOST_DEVIATION = 100
"""The largest standard deviation of the magnitude; timm takes larger ones for uniform magnitudes."""
_ERASING_TRIES = 10
"""Rectangles that are drawn until one fits into the image, as in timm."""


def _transform_affine(image: Image.Image, matrix: tuple[float, ...], fill: Colour) -> Image.Image:
    # bicubic, as MAE asks timm for, whose own default is drawn at random
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC, fillcolor=fill
    )


def _posterize(image: Image.Image, bits: float, fill: Colour) -> Image.Image:
    # not by ImageOps.posterize, which refuses 0 bits since Pillow 12; timm's strongest is 0, which is black
    kept = 256 - 2 ** (8 - int(bits))
    return image.point([value & kept for value in range(256)] * 3)


def _add_below_middle(image: Image.Image, add: float, fill: Colour) -> Image.Image:
    table = list(range(256))
    for value in range(128):
        table[value] = min(255, value + int(add))
    return image.point(table * 3)


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": lambda image, _, fill: ImageOps.autocontrast(image),
    "Equalize": lambda image, _, fill: ImageOps.equalize(image),
    "Invert": lambda image, _, fill: ImageOps.invert(image),
    "Rotate": lambda image, degrees, fill: image.rotate(degrees, resample=Image.Resampling.BICUBIC, fillcolor=fill),
    "Posterize": _posterize,
    "Solarize": lambda image, threshold, fill: ImageOps.solarize(image, int(threshold)),
    "SolarizeAdd": _add_below_middle,
    "Color": lambda image, factor, fill: ImageEnhance.Color(image).enhance(factor),
    "Contrast": lambda image, factor, fill: ImageEnhance.Contrast(image).enhance(factor),
    "Brightness": lambda image, factor, fill: ImageEnhance.Brightness(image).enhance(factor),
    "Sharpness": lambda image, factor, fill: ImageEnhance.Sharpness(image).enhance(factor),
    "ShearX": lambda image, factor, fill: _transform_affine(image, (1, factor, 0, 0, 1, 0), fill),
    "ShearY": lambda image, factor, fill: _transform_affine(image, (1, 0, 0, factor, 1, 0), fill),
    "TranslateXRel": lambda image, share, fill: _transform_affine(image, (1, 0, share * image.width, 0, 1, 0), fill),
    "TranslateYRel": lambda image, share, fill: _transform_affine(image, (1, 0, 0, 0, 1, share * image.height), fill),
}
"""Each takes an RGB image, its strength and the colour of what it uncovers."""


def scale_strength(name: str, magnitude: float, sign: int, increasing: bool = True) -> float:
    """Return how strong operation ``name`` is at ``magnitude`` (0 to 10), in its own unit; ``sign`` is 1 or -1.

    ``increasing`` is timm's ``inc1``: posterise, solarise and the four enhancements grow with the magnitude.
    """
    share = magnitude / _MOST_MAGNITUDE
    match name:
        case "Rotate":
            return sign * share * 30
        case "ShearX" | "ShearY":
            return sign * share * 0.3
        case "TranslateXRel" | "TranslateYRel":
            return sign * share * 0.45
        case "Posterize":
            return 4 - int(share * 4) if increasing else int(share * 4)
        case "Solarize":
            kept = min(256, int(share * 256))
            return 256 - kept if increasing else kept
        case "SolarizeAdd":
            return min(128, int(share * 110))
        case "Color" | "Contrast" | "Brightness" | "Sharpness":
            return max(0.1, 1 + sign * share * 0.9) if increasing else share * 1.8 + 0.1
    return 0.0  # AutoContrast, Equalize and Invert have no strength


class RandAugment:
    """``n`` operations drawn with replacement, each applied half of the time at a magnitude around ``m``.

    ``policy`` is timm's string ``rand-mM-mstdS-incI-nN``: magnitude M (10 if left out), its standard deviation S (0),
    I = 1 for operations that grow with the magnitude (0), and N operations an image (2). ``fill`` is the colour of
    what is uncovered. Raises ConfigError for anything else in the string.
    """

    def __init__(self, policy: str, fill: Colour = (128, 128, 128)) -> None:
        values = {"m": _MOST_MAGNITUDE, "mstd": 0.0, "inc": 0.0, "n": 2.0}
        first, *sections = policy.split("-")
        for section in sections:
            found = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", section)
            if found is None or found[1] not in values:
                raise ConfigError(_explain_policy(policy, section))
            values[found[1]] = float(found[2])
        if first != "rand":
            raise ConfigError(_explain_policy(policy, first))
        is_in_range = values["m"] <= _MOST_MAGNITUDE and values["mstd"] <= _MOST_DEVIATION
        if not is_in_range or values["inc"] not in (0, 1) or values["n"] % 1:
            raise ConfigError(
                f"{_explain_policy(policy, policy)}, with M at most 10, S at most 100, I 0 or 1, and N whole"
            )
        self.magnitude = values["m"]
        self.deviation = values["mstd"]
        self.increasing = bool(values["inc"])
        self.count = int(values["n"])
        self.fill = fill

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Return an RGB image of the same size."""
        names = list(OPERATIONS)
        for choice in rng.integers(len(names), size=self.count):
            if rng.random() >= 0.5:  # timm's default probability of an operation
                continue
            name = names[choice]
            magnitude = min(max(rng.normal(self.magnitude, self.deviation), 0.0), _MOST_MAGNITUDE)
            # drawn for operations without a sign too, so that all take equally many random numbers
            sign = 1 if rng.random() < 0.5 else -1
            strength = scale_strength(name, magnitude, sign, self.increasing)
            image = OPERATIONS[name](image, strength, self.fill)
        return image


def _explain_policy(policy: str, section: str) -> str:
    return f"augment.rand_augment {policy!r}: cannot read {section!r}; expected rand-mM-mstdS-incI-nN"


@dataclass(frozen=True)
class RandomErasing:
    """With ``probability`` replaces a rectangle by noise, one of its own for each pixel (timm's mode ``pixel``).

    The rectangle covers 2 % to a third of the image at an aspect ratio of 0.3 to 1/0.3. timm erases after the
    normalisation with N(0, 1); images are bytes here, so the noise has the normalisation's ``mean`` and ``std`` (of
    values 0 to 1) and is rounded and clipped to 0..255, which N(0, 1) after normalisation is not. ``white`` is the
    pixel that means 1, 255 for bytes.
    """

    probability: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    white: float = 255

    def __call__(self, pixels: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        """Return a copy of ``pixels`` (H, W, C) with the rectangle erased, or ``pixels`` itself."""
        if rng.random() >= self.probability:
            return pixels
        height, width = pixels.shape[:2]
        for _ in range(_ERASING_TRIES):
            area = rng.uniform(0.02, 1 / 3) * height * width
            aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
            box_height = round(math.sqrt(area * aspect))
            box_width = round(math.sqrt(area / aspect))
            if box_height >= height or box_width >= width:
                continue
            top = rng.integers(height - box_height + 1)
            left = rng.integers(width - box_width + 1)
            # the normalisation makes N(0, 1) of this, as far as bytes can hold it
            noise = self.white * rng.normal(self.mean, self.std, size=(box_height, box_width, len(self.mean)))
            # copied, as an array made from a PIL image cannot be written to
            pixels = pixels.copy()
            pixels[top : top + box_height, left : left + box_width] = round_to_type(noise, pixels.dtype)
            break
        return pixels


def jitter_colors(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Change brightness, contrast and saturation in random order, each by a factor uniform in [1 - s, 1 + s].

    torchvision's ``ColorJitter(s, s, s)`` with s = ``strength`` in [0, 1], which BEiT's pretraining applies at 0.4.
    """
    # the three do not commute: torchvision draws their order too
    enhancements = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for index in rng.permutation(3):
        image = enhancements[index](image).enhance(rng.uniform(1 - strength, 1 + strength))
    return image
