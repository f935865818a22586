"""The preparation of images for an encoder: how they are resized, cropped and normalised. No framework here.

The words are timm's: ``crop_pct``, ``crop_mode`` and ``interpolation`` mean what they mean in a ``pretrained_cfg``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from ehm.config.pixel_format import RGB_BYTES, PixelFormat

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "CropMode",
    "InputSpec",
    "Interpolation",
    "Means",
    "Triple",
    "describe_changed_inputs",
    "describe_inputs",
]

Triple = tuple[float, float, float]
Means = tuple[float, ...]
"""A number for each channel."""
CropMode = Literal["center", "squash", "border"]
Interpolation = Literal["bicubic", "bilinear"]

# the normalisation that most published weights were trained with
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
TIMM_CROP_PCT = 0.875
"""The share that timm takes if a ``pretrained_cfg`` names none."""
LARGEST_CROPPED = 224
"""Image side in pixels up to which MAE cuts the borders off when it measures."""


@dataclass(frozen=True)
class InputSpec:
    """The preparation of images for an encoder, from an image of any size to normalised pixels."""

    mean: Means = IMAGENET_MEAN
    """Mean of each channel, for values from 0 to 1."""
    std: Means = IMAGENET_STD
    """Standard deviation of each channel, for values from 0 to 1."""
    crop_pct: float | None = None
    """Size of the crop as a share of the size that the image is resized to; None is MAE's rule: 0.875 up to 224 pixels,
    and 1 beyond."""
    crop_mode: CropMode = "center"
    """``center`` keeps the proportions and cuts off what is over, ``squash`` changes the proportions, and ``border``
    shows the whole image and fills the rest with ``mean``."""
    interpolation: Interpolation = "bicubic"
    pixels: PixelFormat = RGB_BYTES
    """Channels and depth of the images."""

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> InputSpec:
        """Build the spec from the fields that ``values`` has, plain JSON; the other fields keep their defaults.

        Raises ValueError or TypeError if a value is not one that its field may have.
        """
        names = [field.name for field in fields(cls) if field.name != "pixels"]
        known = {name: values[name] for name in names if values.get(name) is not None}
        known["pixels"] = PixelFormat.from_mapping(values)
        for name in ("mean", "std"):
            if name in known:
                known[name] = tuple(map(float, known[name]))  # files hold lists
        if "crop_pct" in known:
            known["crop_pct"] = float(known["crop_pct"])
        spec = cls(**known)
        spec._check_values()
        return spec

    @classmethod
    def from_pretrained_cfg(cls, config: Mapping[str, Any]) -> InputSpec:
        """Read timm's ``pretrained_cfg``, as ``timm.data.resolve_data_config`` does."""
        given = {
            key: value for key, value in config.items() if value and key not in ("channels", "depth", "range", "window")
        }
        return cls.from_mapping({"crop_pct": TIMM_CROP_PCT, **given})

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON, from which :meth:`from_mapping` rebuilds the spec."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "crop_pct": self.crop_pct,
            "crop_mode": self.crop_mode,
            "interpolation": self.interpolation,
            **self.pixels.to_json(),
        }

    def choose_crop_share(self, image_size: tuple[int, int]) -> float:
        """Return the size of the crop as a share of the size that an image is resized to, for a crop of this size."""
        if self.crop_pct is not None:
            return self.crop_pct
        return TIMM_CROP_PCT if max(image_size) <= LARGEST_CROPPED else 1.0

    def compute_resized_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width in pixels that an image is resized to, before ``image_size`` is cut from it."""
        share = self.choose_crop_share(image_size)
        height, width = image_size
        return math.floor(height / share), math.floor(width / share)

    def _check_values(self) -> None:
        share = 1.0 if self.crop_pct is None else self.crop_pct
        is_finite = all(map(math.isfinite, (*self.mean, *self.std, share)))
        if not is_finite or min(self.std) <= 0 or share <= 0:
            raise ValueError(f"mean {self.mean}, std {self.std}, crop_pct {self.crop_pct}: not a preparation of images")
        if not len(self.mean) == len(self.std) == self.pixels.count:
            raise ValueError(f"mean {self.mean} and std {self.std} are not those of {self.pixels.describe()}")
        if self.crop_mode not in get_args(CropMode) or self.interpolation not in get_args(Interpolation):
            raise ValueError(f"crop_mode {self.crop_mode!r} or interpolation {self.interpolation!r} is unknown")


def describe_inputs(inputs: InputSpec) -> str:
    """Return a note that says how images are prepared, with the keys that change it."""
    values = []
    for key, value in inputs.to_json().items():
        values.append(f"data.{key} {'null' if value is None else value}")
    return "images are prepared by " + ", ".join(values)


def describe_changed_inputs(inputs: InputSpec, own: InputSpec) -> tuple[str, ...]:
    """Return a note about the values of the weights (``own``) that a configuration changes in ``inputs``.

    Returns no note if nothing is changed.
    """
    values = own.to_json()
    usual = vars(RGB_BYTES)
    changed = []
    for key, value in inputs.to_json().items():
        before = values.get(key, usual.get(key))
        if value != before:
            changed.append(f"data.{key} {before}")
    if not changed:
        return ()
    return ("these weights are taken as trained with " + ", ".join(changed),)
