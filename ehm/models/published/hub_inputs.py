"""The preparation of images as Hugging Face's files describe it, in the words of :class:`ehm.config.inputs.InputSpec`.

``preprocessor_config.json`` is transformers', ``preprocess_cfg`` a section of OpenCLIP's ``open_clip_config.json``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ehm.config.inputs import InputSpec, Interpolation
from ehm.models.published.settings import Settings

__all__ = ["read_openclip_inputs", "read_processor"]

_BILINEAR = 2
_BICUBIC = 3
_RESAMPLED: dict[int, Interpolation] = {_BILINEAR: "bilinear", _BICUBIC: "bicubic"}
"""Interpolations by Pillow's numbers, which transformers' files have."""


def read_processor(settings: Settings, default: InputSpec) -> InputSpec:
    """Read transformers' ``preprocessor_config.json``; what it does not say is that of ``default``.

    An image is resized to ``size``, which keeps its proportions if that is ``shortest_edge``; then ``crop_size`` is cut
    out. Raises CheckpointError if images are prepared in a way that ehm does not know.
    """
    values: dict[str, Any] = {}
    if not settings.flag("do_normalize", True):
        values["mean"] = (0.0, 0.0, 0.0)
        values["std"] = (1.0, 1.0, 1.0)
    else:
        for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
            if theirs in settings:
                values[ours] = settings.triple(theirs)
    factor = settings.number("rescale_factor", 1 / 255)
    if not settings.flag("do_rescale", True) or abs(255 * factor - 1) > 1e-3:
        raise settings.refuse_setting("rescale_factor", "ehm gives encoders pixels from 0 to 1, before mean and std")
    if "resample" in settings:
        # nearest and Lanczos, which no published encoder of these families has, are taken as the nearest that we have
        values["interpolation"] = _RESAMPLED.get(settings.count("resample"), "bicubic")
    if "size" in settings:
        values |= _read_crop(settings)
    return replace(default, **values)


def read_openclip_inputs(settings: Settings, default: InputSpec) -> InputSpec:
    """Read OpenCLIP's ``preprocess_cfg``; what it does not say is that of ``default``."""
    values: dict[str, Any] = {}
    for key in ("mean", "std"):
        if key in settings:
            values[key] = settings.triple(key)
    if settings.text("interpolation", "bicubic") in ("bicubic", "bilinear"):
        values["interpolation"] = settings.text("interpolation", "bicubic")
    if settings.text("resize_mode", "shortest") == "squash":
        values["crop_mode"] = "squash"
    return replace(default, **values)


def _read_crop(settings: Settings) -> dict[str, Any]:
    """Return the share of the resized image that is cut out, and whether proportions are kept."""
    size = settings.section("size") if settings.is_section("size") else None
    crops = settings.flag("do_center_crop", False) and "crop_size" in settings
    if size is not None and "shortest_edge" in size:
        edge = size.count("shortest_edge")
        keeps_proportions = True
    else:
        edge = settings.pair("size")[0]
        # older files give one number, which is the shorter edge if a crop follows
        keeps_proportions = size is None and crops
    share = settings.pair("crop_size")[0] / edge if crops else 1.0
    return {"crop_pct": share, "crop_mode": "center" if keeps_proportions else "squash"}
