"""Decide which kind of source of annotated objects a configuration means."""

from __future__ import annotations

from pathlib import Path

from ehm.config import DetectionData
from ehm.data.sources.base import Split
from ehm.data.sources.coco import CocoSource, open_coco
from ehm.data.sources.coco_layouts import holds_annotations
from ehm.data.sources.yolo import open_yolo
from ehm.data.sources.yolo_layouts import holds_yolo
from ehm.errors import DataError

__all__ = ["open_objects"]


def open_objects(config: DetectionData, split: Split, masks: bool = True) -> CocoSource:
    """Open the part ``split`` of ``config.source``, in COCO's or YOLO's format as ``config.layout`` says.

    Raises DataError if it is neither, or if it is both and nothing says which is meant.
    """
    is_yolo = config.layout == "yolo"
    if config.layout == "auto" and holds_yolo(config.source):
        if holds_annotations(Path(config.source).expanduser()):
            raise DataError(
                f"data.source {config.source}: fits 2 layouts: COCO's annotations and YOLO's label files; choose with "
                "data.layout=yolo, or data.layout=coco or another of COCO's"
            )
        is_yolo = True
    return open_yolo(config, split, masks) if is_yolo else open_coco(config, split, masks)
