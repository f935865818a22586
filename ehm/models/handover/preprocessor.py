"""``preprocessor_config.json`` of transformers: how images are prepared for an encoder."""

from __future__ import annotations

from typing import Any

from ehm.config.inputs import InputSpec

__all__ = ["describe_preprocessor"]

_RESAMPLING = {"bicubic": 3, "bilinear": 2}
"""Pillow's numbers of the methods."""


def describe_preprocessor(inputs: InputSpec, image_size: tuple[int, int]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the content of the file for images of ``image_size``, and notes on what ehm does otherwise.

    transformers cuts the middle out of an image as ehm does if that is a square; else it changes the proportions.
    """
    height, width = image_size
    values: dict[str, Any] = {
        "do_resize": True,
        "resample": _RESAMPLING[inputs.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / inputs.pixels.white,
        "do_normalize": True,
        "image_mean": list(inputs.mean),
        "image_std": list(inputs.std),
        "do_convert_rgb": inputs.pixels.is_rgb,
    }
    if inputs.crop_mode == "center" and height == width:
        cut = {
            "image_processor_type": "BitImageProcessor",
            "size": {"shortest_edge": inputs.compute_resized_size(image_size)[0]},
            "do_center_crop": True,
            "crop_size": {"height": height, "width": width},
        }
        return values | cut, ()
    notes: tuple[str, ...] = ()
    if inputs.crop_mode != "squash":
        notes = ("its preprocessor changes the proportions of images, which ehm keeps",)
    return values | {"image_processor_type": "ViTImageProcessor", "size": {"height": height, "width": width}}, notes
