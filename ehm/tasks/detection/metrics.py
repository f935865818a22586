"""Average precision of boxes and of masks as COCO counts it (Lin et al., 2014).

faster-coco-eval counts: the same numbers as pycocotools', of which it is many times as fast.

An average precision is the mean of the precision at 101 recalls; AP is its mean over classes and over the overlaps
0.50, 0.55, … 0.95 from which on a detection counts, AP50 that at 0.50. Small are objects below 32 x 32 pixels, large
from 96 x 96. Crowds are ignored: a detection inside one is neither right nor wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any, Literal

import numpy as np
from rich.table import Table

from ehm.console import console
from ehm.data.instances import Detections
from ehm.data.sources.coco import mask_tools

__all__ = ["AveragePrecision", "Precision", "as_results", "average_precision"]

Row = dict[str, Any]
"""A detection or an annotation as COCO has it, ``category_id`` being the class number."""
_SHOWN_CLASSES = 20


@dataclass(frozen=True)
class Precision:
    """In [0, 1], or None where no object counts; ``per_class`` is AP in the order of the report's ``classes``."""

    ap: float | None
    ap50: float | None
    ap75: float | None
    small: float | None
    medium: float | None
    large: float | None
    per_class: tuple[float | None, ...]


@dataclass(frozen=True)
class AveragePrecision:
    """What a detector reaches on ``images`` with ``objects`` (number of each class, crowds left out).

    ``masks`` is None where it finds boxes alone.
    """

    images: int
    classes: tuple[str, ...]
    objects: tuple[int, ...]
    boxes: Precision
    masks: Precision | None

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``metrics.json``."""
        return asdict(self)

    @property
    def figures(self) -> dict[str, float | None]:
        """Those for the whole."""
        parts = {"box": self.boxes, **({} if self.masks is None else {"mask": self.masks})}
        return {
            f"{part}_{name}": getattr(precision, name)
            for part, precision in parts.items()
            for name in ("ap", "ap50", "ap75")
        }

    @property
    def score(self) -> float:
        """What the best checkpoint is chosen by: AP of the boxes."""
        return self.boxes.ap or 0.0

    def show(self) -> None:
        """Print the whole, and the classes (the worst ones of many)."""
        parts = {"boxes": self.boxes, **({} if self.masks is None else {"masks": self.masks})}
        table = Table(title=f"average precision on {self.images:,} images, {sum(self.objects):,} objects")
        table.add_column("")
        for name in ("AP", "AP50", "AP75", "small", "medium", "large"):
            table.add_column(name, justify="right")
        for part, found in parts.items():
            values = (found.ap, found.ap50, found.ap75, found.small, found.medium, found.large)
            table.add_row(part, *map(_shown, values))
        console.print(table)
        worst = sorted(range(len(self.classes)), key=lambda index: (self.boxes.per_class[index] or 0.0, index))
        few = len(self.classes) <= _SHOWN_CLASSES
        table = Table(title=None if few else f"the {_SHOWN_CLASSES} classes of lowest AP")
        table.add_column("class")
        for name in (*(f"AP of {part}" for part in parts), "objects"):
            table.add_column(name, justify="right")
        for index in range(len(self.classes)) if few else worst[:_SHOWN_CLASSES]:
            shares = (_shown(found.per_class[index]) for found in parts.values())
            table.add_row(self.classes[index], *shares, str(self.objects[index]))
        console.print(table)


def as_results(image_id: int, found: Detections) -> list[Row]:
    """Detections in an image as rows: masks run-length encoded, so that those of many images fit in memory."""
    left, top, right, bottom = found.boxes.T.astype(np.float64)
    boxes = np.stack([left, top, right - left, bottom - top], axis=1).tolist()
    rows: list[Row] = [
        {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
        for label, box, score in zip(found.labels.tolist(), boxes, found.scores.tolist(), strict=True)
    ]
    if found.masks is not None and rows:
        codes = mask_tools().encode(np.asfortranarray(found.masks.transpose(1, 2, 0), dtype=np.uint8))
        for row, code in zip(rows, codes, strict=True):
            row["segmentation"] = code
    return rows


def average_precision(
    images: Sequence[Mapping[str, Any]],
    truth: Sequence[Row],
    found: Sequence[Row],
    classes: Sequence[str],
    masks: bool,
    detections: int = 100,
) -> AveragePrecision:
    """Compare what was ``found`` in ``images`` (each with ``id``, ``height``, ``width``) with the ``truth``.

    ``truth`` are COCO's annotations, ``category_id`` being the class number; ``area`` and ``iscrowd`` may be missing.
    At most ``detections`` of an image count. Raises ValueError without images.
    """
    if not images:
        raise ValueError("images: there is none to measure")
    categories = [{"id": number, "name": name} for number, name in enumerate(classes)]
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    objects = [_complete(row, number, sizes[row["image_id"]]) for number, row in enumerate(truth, start=1)]
    right = _database(images, categories, objects)

    def measure(kind: Literal["bbox", "segm"]) -> Precision:
        rows = [dict(row) for row in found]
        for row in rows:
            row.pop("bbox" if kind == "segm" else "segmentation", None)  # from which areas would be taken
        answers = right.loadRes(rows) if rows else _database(images, categories, [])
        return _evaluate(right, answers, kind, len(classes), detections)

    counts = np.bincount([row["category_id"] for row in objects if not row["iscrowd"]], minlength=len(classes))
    return AveragePrecision(
        images=len(images),
        classes=tuple(classes),
        objects=tuple(counts.tolist()),
        boxes=measure("bbox"),
        masks=measure("segm") if masks else None,
    )


def _complete(row: Row, number: int, size: tuple[int, int]) -> Row:
    """With an id of its own, which starts at 1 as 0 means no match, and with what COCO's files have besides."""
    whole = {**row, "id": number, "iscrowd": int(row.get("iscrowd") or 0)}
    if "area" not in whole:
        whole["area"] = _area(row, size)
    return whole


def _area(row: Row, size: tuple[int, int]) -> float:
    """Pixels of an object: of its mask, or without one of its box."""
    segmentation = row.get("segmentation")
    if not segmentation:
        return float(row["bbox"][2] * row["bbox"][3])
    tools = mask_tools()
    if isinstance(segmentation, list):
        segmentation = tools.merge(tools.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        segmentation = tools.frPyObjects(segmentation, *size)
    return float(tools.area(segmentation))


def _database(images: Sequence[Mapping[str, Any]], categories: list[Row], annotations: list[Row]) -> Any:
    database = import_module("faster_coco_eval").COCO()
    database.dataset = {"images": list(images), "categories": categories, "annotations": annotations}
    database.createIndex()
    return database


def _evaluate(right: Any, answers: Any, kind: Literal["bbox", "segm"], classes: int, detections: int) -> Precision:
    evaluation = import_module("faster_coco_eval").COCOeval_faster(right, answers, kind)
    evaluation.params.maxDets = [detections]
    evaluation.evaluate()
    evaluation.accumulate()
    # (overlaps, recalls, classes, areas, detections), -1 where no object counts
    precision = evaluation.eval["precision"][:, :, :, :, -1]
    of_class = (_mean(precision[:, :, number, 0]) for number in range(classes))
    return Precision(
        ap=_mean(precision[:, :, :, 0]),
        ap50=_mean(precision[0, :, :, 0]),
        ap75=_mean(precision[5, :, :, 0]),
        small=_mean(precision[:, :, :, 1]),
        medium=_mean(precision[:, :, :, 2]),
        large=_mean(precision[:, :, :, 3]),
        per_class=tuple(of_class),
    )


def _mean(precision: Any) -> float | None:
    counted = precision[precision > -1]
    return float(counted.mean()) if counted.size else None


def _shown(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
