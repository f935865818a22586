"""How the images of an encoder are resized, cropped and normalised; no framework here.

The words are timm's: ``crop_pct``, ``crop_mode`` and ``interpolation`` mean what they mean in a ``pretrained_cfg``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "CropMode", "InputSpec", "Interpolation", "Triple", "differing_inputs"]

Triple = tuple[float, float, float]
CropMode = Literal["center", "squash", "border"]
Interpolation = Literal["bicubic", "bilinear"]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
"""The normalisation that most published weights were trained with."""
TIMM_CROP_PCT = 0.875
"""The share that timm takes if a ``pretrained_cfg`` names none."""


@dataclass(frozen=True)
class InputSpec:
    """The preparation of images for an encoder, from an RGB image of any size to normalised pixels.

    ``crop_pct`` is the size of the crop as a share of the size that the image is resized to; None is MAE's rule: 0.875
    up to 224 pixels, and 1 beyond. ``crop_mode`` ``center`` keeps the proportions and cuts off what is over, ``squash``
    changes the proportions, and ``border`` shows the whole image and fills the rest with ``mean``. ``mean`` and ``std``
    are of values from 0 to 1, in R, G and B.
    """

    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    crop_pct: float | None = None
    crop_mode: CropMode = "center"
    interpolation: Interpolation = "bicubic"

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> InputSpec:
        """Build the spec from the fields that ``values`` has, plain JSON; the other fields keep their defaults.

        Raises ValueError or TypeError if a value is none that its field may have.
        """
        known = {field.name: values[field.name] for field in fields(cls) if values.get(field.name) is not None}
        for name in ("mean", "std"):
            if name in known:
                red, green, blue = map(float, known[name])
                known[name] = (red, green, blue)
        if "crop_pct" in known:
            known["crop_pct"] = float(known["crop_pct"])
        spec = cls(**known)
        spec._check()
        return spec

    @classmethod
    def from_pretrained_cfg(cls, config: Mapping[str, Any]) -> InputSpec:
        """Read timm's ``pretrained_cfg``, as ``timm.data.resolve_data_config`` does."""
        return cls.from_mapping({"crop_pct": TIMM_CROP_PCT, **{key: value for key, value in config.items() if value}})

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON, from which :meth:`from_mapping` rebuilds the spec."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def resize_target(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width in pixels that an image is resized to, before ``image_size`` is cut from it."""
        share = self.crop_pct
        if share is None:
            share = TIMM_CROP_PCT if max(image_size) <= 224 else 1.0
        height, width = image_size
        return math.floor(height / share), math.floor(width / share)

    def _check(self) -> None:
        numbers = [*self.mean, *self.std, 1.0 if self.crop_pct is None else self.crop_pct]
        if not all(map(math.isfinite, numbers)) or min(self.std) <= 0 or numbers[-1] <= 0:
            raise ValueError(f"mean {self.mean}, std {self.std}, crop_pct {self.crop_pct}: not a preparation of images")
        if self.crop_mode not in get_args(CropMode) or self.interpolation not in get_args(Interpolation):
            raise ValueError(f"crop_mode {self.crop_mode!r} or interpolation {self.interpolation!r} is unknown")


def differing_inputs(inputs: InputSpec, own: InputSpec) -> tuple[str, ...]:
    """Say in a note what ``inputs``, set by a configuration, changes of what the weights say (``own``), if anything."""
    before = own.to_json()
    changed = [key for key, value in inputs.to_json().items() if value != before[key]]
    if not changed:
        return ()
    return ("these weights are taken as trained with " + ", ".join(f"data.{key} {before[key]}" for key in changed),)
