"""RandAugment (Cubuk et al., 2020) and random erasing (Zhong et al., 2020) as timm does them and MAE uses them; jitter.

The operations and their strengths are timm's, on PIL images; randomness comes from the NumPy generator of the sample.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from ehm.errors import ConfigError

__all__ = ["OPERATIONS", "RandAugment", "RandomErasing", "color_jitter", "strength"]

Colour = tuple[int, int, int]
Operation = Callable[[Image.Image, float, Colour], Image.Image]

_MAX = 10.0  # the magnitude at which an operation is at its strongest


def _affine(image: Image.Image, matrix: tuple[float, ...], fill: Colour) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC, fillcolor=fill
    )


def _posterize(image: Image.Image, bits: float, fill: Colour) -> Image.Image:
    kept = 256 - 2 ** (8 - int(bits))  # ImageOps.posterize refuses 0 bits since Pillow 12; timm's strongest is 0: black
    return image.point([value & kept for value in range(256)] * 3)


def _solarize_add(image: Image.Image, add: float, fill: Colour) -> Image.Image:
    table = [min(255, value + int(add)) if value < 128 else value for value in range(256)]
    return image.point(table * 3)


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": lambda image, _, fill: ImageOps.autocontrast(image),
    "Equalize": lambda image, _, fill: ImageOps.equalize(image),
    "Invert": lambda image, _, fill: ImageOps.invert(image),
    "Rotate": lambda image, degrees, fill: image.rotate(degrees, resample=Image.Resampling.BICUBIC, fillcolor=fill),
    "Posterize": _posterize,
    "Solarize": lambda image, threshold, fill: ImageOps.solarize(image, int(threshold)),
    "SolarizeAdd": _solarize_add,
    "Color": lambda image, factor, fill: ImageEnhance.Color(image).enhance(factor),
    "Contrast": lambda image, factor, fill: ImageEnhance.Contrast(image).enhance(factor),
    "Brightness": lambda image, factor, fill: ImageEnhance.Brightness(image).enhance(factor),
    "Sharpness": lambda image, factor, fill: ImageEnhance.Sharpness(image).enhance(factor),
    "ShearX": lambda image, factor, fill: _affine(image, (1, factor, 0, 0, 1, 0), fill),
    "ShearY": lambda image, factor, fill: _affine(image, (1, 0, 0, factor, 1, 0), fill),
    "TranslateXRel": lambda image, share, fill: _affine(image, (1, 0, share * image.width, 0, 1, 0), fill),
    "TranslateYRel": lambda image, share, fill: _affine(image, (1, 0, 0, 0, 1, share * image.height), fill),
}
"""Each takes an RGB image, its strength and the colour of what it uncovers."""


def strength(name: str, magnitude: float, sign: int, increasing: bool = True) -> float:
    """How strong operation ``name`` is at ``magnitude`` (0 to 10), in the unit that it takes; ``sign`` is 1 or -1.

    ``increasing`` is timm's ``inc1``: posterise, solarise and the four enhancements grow with the magnitude.
    """
    share = magnitude / _MAX
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
        values = {"m": _MAX, "mstd": 0.0, "inc": 0.0, "n": 2.0}
        first, *sections = policy.split("-")
        for section in sections:
            found = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", section)
            if found is None or found[1] not in values:
                raise ConfigError(_wrong(policy, section))
            values[found[1]] = float(found[2])
        if first != "rand":
            raise ConfigError(_wrong(policy, first))
        if values["m"] > _MAX or values["mstd"] > 100 or values["inc"] not in (0, 1) or values["n"] % 1:
            raise ConfigError(f"{_wrong(policy, policy)}, with M at most 10, S at most 100, I 0 or 1, and N whole")
        self.magnitude, self.deviation = values["m"], values["mstd"]
        self.increasing, self.count = bool(values["inc"]), int(values["n"])
        self.fill = fill

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """An RGB image -> an RGB image of the same size."""
        names = list(OPERATIONS)
        for choice in rng.integers(len(names), size=self.count):
            if rng.random() < 0.5:
                name = names[choice]
                magnitude = min(max(rng.normal(self.magnitude, self.deviation), 0.0), _MAX)
                sign = 1 if rng.random() < 0.5 else -1
                image = OPERATIONS[name](image, strength(name, magnitude, sign, self.increasing), self.fill)
        return image


def _wrong(policy: str, section: str) -> str:
    return f"augment.rand_augment {policy!r}: cannot read {section!r}; expected rand-mM-mstdS-incI-nN"


@dataclass(frozen=True)
class RandomErasing:
    """With ``probability`` replaces a rectangle by noise, one of its own for each pixel (timm's mode ``pixel``).

    The rectangle covers 2 % to a third of the image at an aspect ratio of 0.3 to 1/0.3. timm erases after the
    normalisation with N(0, 1); images are bytes here, so the noise has the normalisation's ``mean`` and ``std`` (of
    values 0 to 1) and is rounded and clipped to 0..255, which N(0, 1) after normalisation is not.
    """

    probability: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """(H, W, 3) -> a copy with the rectangle erased, or ``pixels`` itself."""
        if rng.random() >= self.probability:
            return pixels
        height, width = pixels.shape[:2]
        for _ in range(10):
            area = rng.uniform(0.02, 1 / 3) * height * width
            aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
                noise = 255 * rng.normal(self.mean, self.std, size=(h, w, 3))
                pixels = pixels.copy()
                pixels[top : top + h, left : left + w] = np.clip(np.round(noise), 0, 255).astype(np.uint8)
                break
        return pixels


def color_jitter(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Change brightness, contrast and saturation in random order, each by a factor uniform in [1 - s, 1 + s].

    torchvision's ``ColorJitter(s, s, s)`` with s = ``strength`` in [0, 1], which BEiT's pretraining applies at 0.4.
    """
    enhancements = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for index in rng.permutation(3):
        image = enhancements[index](image).enhance(rng.uniform(1 - strength, 1 + strength))
    return image
