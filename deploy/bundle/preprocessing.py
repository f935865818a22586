"""The manifest's record of how images are prepared, made from a model's inputs and turned back into a transform."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.config.inputs import CropMode, InputSpec
from ehm.data.decoding.depth import ValueRange
from ehm.data.eval_transform import EvalTransform
from ehm.deploy.bundle.manifest import Preprocessing

__all__ = ["create_eval_transform", "describe_preprocessing", "find_seen_region", "normalise_pixels"]

_RESIZES: dict[CropMode, str] = {"center": "cover", "squash": "squash", "border": "fit"}
"""The manifest's word for each of timm's."""
_CROP_MODES: dict[str, CropMode] = {resize: mode for mode, resize in _RESIZES.items()}


def describe_preprocessing(
    image_size: tuple[int, int], inputs: InputSpec, in_graph: bool = False, value_range: ValueRange = None
) -> Preprocessing:
    """Return the manifest's record of how images of ``image_size`` = (H, W) are prepared.

    ``value_range`` is what the training stated for photographs of more than 8 bits.
    """
    # the transform works out the sizes, so that the rule is in one place
    transform = EvalTransform.from_spec(image_size, inputs)
    pixels = inputs.pixels
    names = () if isinstance(pixels.channels, int) else pixels.channels
    return Preprocessing.model_validate(
        {
            "in_graph": in_graph,
            "value_range": value_range if pixels.is_rgb else pixels.range,
            "colour": "RGB" if pixels.is_rgb else "none",
            "channels": pixels.count,
            "channel_names": names,
            "depth": pixels.depth,
            "window": pixels.window,
            "image_size": image_size,
            "resize": _RESIZES[transform.crop_mode],
            "cover": transform.cover,
            "rounding": transform.rounding,
            "interpolation": transform.interpolation,
            "fill": transform.fill,
            "mean": inputs.mean,
            "std": inputs.std,
        }
    )


def create_eval_transform(preprocessing: Preprocessing) -> EvalTransform:
    """Return the transform from an image to the pixels (H, W, C) that a manifest describes."""
    return EvalTransform(
        preprocessing.image_size,
        preprocessing.cover,
        _CROP_MODES[preprocessing.resize],
        preprocessing.interpolation,
        preprocessing.fill,
        preprocessing.rounding,
        preprocessing.pixels.without_file_range,
    )


def normalise_pixels(pixels: NDArray[Any], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Turn pixels (..., H, W, C) into (..., C, H, W): minus the mean, divided by the standard deviation."""
    mean = np.asarray(preprocessing.mean, np.float32).reshape(-1, 1, 1)
    std = np.asarray(preprocessing.std, np.float32).reshape(-1, 1, 1)
    white = preprocessing.pixels.white
    planes = np.moveaxis(pixels.astype(np.float32), -1, -3)
    # mean and deviation are those of values in [0, 1]
    normalised: NDArray[np.float32] = (planes - mean * white) / (std * white)
    return normalised


def find_seen_region(width: int, height: int, preprocessing: Preprocessing) -> tuple[float, float, float, float]:
    """Return the part of an image that a network sees: left, top, width and height, in the image's pixels."""
    transform = create_eval_transform(preprocessing)
    part_left, part_top, part_right, part_bottom = transform.find_part(width, height)
    part_width = part_right - part_left
    part_height = part_bottom - part_top
    # the crop is cut from the resized part, so it is scaled back
    (resized_width, resized_height), (left, top) = transform.find_layout(part_width, part_height)
    across = part_width / resized_width
    down = part_height / resized_height
    crop_height, crop_width = transform.image_size
    return part_left + left * across, part_top + top * down, crop_width * across, crop_height * down
