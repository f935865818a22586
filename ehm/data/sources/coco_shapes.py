"""The boxes and masks of objects in COCO's format: cut off at an image's borders, painted, and turned as it is seen.

Shapes: an image of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.data.decoding.orientation import turn_array, turn_boxes
from ehm.errors import DataError
from ehm.installation import build_install_command

__all__ = ["Annotation", "clip_box", "decode_mask", "import_mask_tools", "read_size", "turn_object"]

Annotation = Mapping[str, Any]
"""An object as in the file: ``bbox`` (left, top, width, height), ``category_id``, ``segmentation``, ``iscrowd``."""


def import_mask_tools() -> Any:
    """Import the functions of pycocotools.mask for run-length codes; raises DataError if they are not installed."""
    try:
        return import_module("faster_coco_eval.core.mask")
    except ImportError:
        raise DataError(
            f"COCO's masks are read by faster-coco-eval; {build_install_command('tasks')} installs it"
        ) from None


def read_size(image: Mapping[str, Any]) -> tuple[int, int]:
    """Return the height and width of an image's record."""
    return int(image["height"]), int(image["width"])


def clip_box(each: Annotation, size: tuple[int, int]) -> NDArray[np.float32] | None:
    """Clip a box to an image of ``size`` = (height, width): left, top, right, bottom; None if nothing is inside."""
    left, top, width, height = each["bbox"]
    box = np.array([left, top, left + width, top + height], np.float32)
    box = box.clip(0, np.array([size[1], size[0], size[1], size[0]], np.float32))
    if box[2] > box[0] and box[3] > box[1]:
        return box
    return None


def decode_mask(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    """Paint polygons, or a run-length code, as pycocotools does: (H, W)."""
    tools = import_mask_tools()
    if isinstance(segmentation, list):
        code = tools.merge(tools.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        code = tools.frPyObjects(segmentation, height, width)
    else:
        code = segmentation
    mask: NDArray[np.bool_] = tools.decode(code).astype(bool)
    return mask


def turn_object(each: Annotation, size: tuple[int, int], orientation: int) -> Annotation:
    """Return an object of a stored image of ``size`` (height, width) as it is seen; its mask as a run-length code."""
    height, width = size
    left, top, across, down = each["bbox"]
    box = np.array([[left, top, left + across, top + down]], np.float64)
    left, top, right, bottom = turn_boxes(box, (width, height), orientation)[0].tolist()
    turned = {**each, "bbox": [left, top, right - left, bottom - top]}
    if each.get("segmentation"):
        mask = turn_array(decode_mask(each["segmentation"], height, width), orientation)
        turned["segmentation"] = import_mask_tools().encode(np.asfortranarray(mask, dtype=np.uint8))
    return turned
