"""Average precision of boxes and of masks by the rules of COCO (Lin et al., 2014).

faster-coco-eval computes it: the same numbers as pycocotools, many times faster.

An average precision is the mean of the precision at 101 recalls. AP is its mean over all classes and over ten
thresholds of the overlap with the true object, 0.50, 0.55, ... 0.95; AP50 is that at 0.50 alone. Objects are small
below 32 x 32 pixels and large from 96 x 96. Crowds are ignored: a detection inside one is neither right nor wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from ehm.console import console
from ehm.data.instances import Detections
from ehm.data.sources.coco_shapes import import_mask_tools
from ehm.report.run_card import FiguresCard
from ehm.tasks.class_table import make_class_table

__all__ = ["DetectionReport", "Precision", "encode_detections", "report_detection"]

Row = dict[str, Any]
"""A detection or an annotation in COCO's format, with the number of the class as ``category_id``."""


@dataclass(frozen=True)
class Precision:
    """Average precisions in [0, 1], each None if there is no object; ``per_class`` is AP in the order of classes."""

    ap: float | None
    ap50: float | None
    ap75: float | None
    small: float | None
    medium: float | None
    large: float | None
    per_class: tuple[float | None, ...]


@dataclass(frozen=True)
class DetectionReport(FiguresCard):
    """The figures of a detector on ``images`` images; ``objects`` has the number of objects of each class.

    Crowds are not counted. ``masks`` is None if the detector only finds boxes.
    """

    images: int
    classes: tuple[str, ...]
    objects: tuple[int, ...]
    boxes: Precision
    masks: Precision | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values for ``metrics.json``."""
        return asdict(self)

    @property
    def figures(self) -> Mapping[str, float | None]:
        """The figures for all images together."""
        figures: dict[str, float | None] = {}
        for part, precision in (("box", self.boxes), ("mask", self.masks)):
            if precision is not None:
                figures[f"{part}_ap"] = precision.ap
                figures[f"{part}_ap50"] = precision.ap50
                figures[f"{part}_ap75"] = precision.ap75
        return figures

    @property
    def score(self) -> float:
        """The figure that the best checkpoint is chosen by: AP of the boxes."""
        return self.boxes.ap or 0.0

    def show(self) -> None:
        """Print the figures, and the classes (the worst ones of many)."""
        parts = {"boxes": self.boxes}
        if self.masks is not None:
            parts["masks"] = self.masks
        table = Table(title=f"average precision on {self.images:,} images, {sum(self.objects):,} objects")
        table.add_column("")
        for name in ("AP", "AP50", "AP75", "small", "medium", "large"):
            table.add_column(name, justify="right")
        for part, found in parts.items():
            values = (found.ap, found.ap50, found.ap75, found.small, found.medium, found.large)
            table.add_row(part, *map(_format_share, values))
        console.print(table)

        columns = {}
        for part, found in parts.items():
            columns[f"AP of {part}"] = list(map(_format_share, found.per_class))
        columns["objects"] = list(map(str, self.objects))
        # classes without objects count as 0 here, and come first
        box_ap = [share or 0.0 for share in self.boxes.per_class]
        worst_first = sorted(range(len(self.classes)), key=box_ap.__getitem__)
        console.print(make_class_table(self.classes, columns, worst_first, "AP"))


def encode_detections(image_id: int, found: Detections) -> list[Row]:
    """Return the detections in an image as rows, with masks run-length encoded, so that many fit in memory."""
    left, top, right, bottom = found.boxes.T.astype(np.float64)
    boxes = np.stack([left, top, right - left, bottom - top], axis=1).tolist()
    rows: list[Row] = []
    for label, box, score in zip(found.labels.tolist(), boxes, found.scores.tolist(), strict=True):
        rows.append({"image_id": image_id, "category_id": label, "bbox": box, "score": score})
    if found.masks is not None and rows:
        # pycocotools takes masks as (H, W, n) in column-major order
        codes = import_mask_tools().encode(np.asfortranarray(found.masks.transpose(1, 2, 0), dtype=np.uint8))
        for row, code in zip(rows, codes, strict=True):
            row["segmentation"] = code
    return rows


def report_detection(
    images: Sequence[Mapping[str, Any]],
    truth: Sequence[Row],
    found: Sequence[Row],
    classes: Sequence[str],
    masks: bool,
    detections: int = 100,
) -> DetectionReport:
    """Compare the detections ``found`` in ``images`` (each with ``id``, ``height``, ``width``) with the ``truth``.

    The annotations of ``truth`` may lack ``area`` and ``iscrowd``. At most ``detections`` of an image count. Raises
    ValueError if there are no images.
    """
    if not images:
        raise ValueError("images: there is none to measure")
    categories = [{"id": number, "name": name} for number, name in enumerate(classes)]
    sizes = {}
    for image in images:
        sizes[image["id"]] = (image["height"], image["width"])
    objects = []
    for number, row in enumerate(truth, start=1):  # not from 0, which means "no match" to faster-coco-eval
        objects.append(_complete_row(row, number, sizes[row["image_id"]]))
    true_objects = _make_database(images, categories, objects)

    def measure(kind: Literal["bbox", "segm"]) -> Precision:
        # without the masks of detections when boxes are measured, and the other way round: areas come from what is left
        unused = "bbox" if kind == "segm" else "segmentation"
        rows = []
        for row in found:
            rows.append({key: value for key, value in row.items() if key != unused})
        answers = true_objects.loadRes(rows) if rows else _make_database(images, categories, [])
        return _evaluate_database(true_objects, answers, kind, len(classes), detections)

    counts = np.zeros(len(classes), np.int64)
    for row in objects:
        if not row["iscrowd"]:  # a crowd is not a single object
            counts[row["category_id"]] += 1
    return DetectionReport(
        images=len(images),
        classes=tuple(classes),
        objects=tuple(counts.tolist()),
        boxes=measure("bbox"),
        masks=measure("segm") if masks else None,
    )


def _complete_row(row: Row, number: int, size: tuple[int, int]) -> Row:
    """Return an annotation with the id ``number``, and with ``area`` and ``iscrowd`` if it lacks them."""
    complete = {**row, "id": number, "iscrowd": int(row.get("iscrowd") or 0)}
    if "area" not in complete:
        complete["area"] = _compute_area(row, size)
    return complete


def _compute_area(row: Row, size: tuple[int, int]) -> float:
    """Return the area of an object in pixels: that of its mask, or if it has none, of its box."""
    segmentation = row.get("segmentation")
    if not segmentation:
        return float(row["bbox"][2] * row["bbox"][3])
    tools = import_mask_tools()
    # COCO's three forms: polygons, run lengths as a list, and run lengths packed in text
    if isinstance(segmentation, list):
        segmentation = tools.merge(tools.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        segmentation = tools.frPyObjects(segmentation, *size)
    return float(tools.area(segmentation))


def _make_database(images: Sequence[Mapping[str, Any]], categories: list[Row], annotations: list[Row]) -> Any:
    # imported here, because only measuring needs the package; its constructor takes a file and no dictionary
    database = import_module("faster_coco_eval").COCO()
    database.dataset = {"images": list(images), "categories": categories, "annotations": annotations}
    database.createIndex()
    return database


def _evaluate_database(
    truth: Any, answers: Any, kind: Literal["bbox", "segm"], classes: int, detections: int
) -> Precision:
    evaluation = import_module("faster_coco_eval").COCOeval_faster(truth, answers, kind)
    # one limit instead of COCO's three (1, 10 and 100), because average precision only uses the last one
    evaluation.params.maxDets = [detections]
    evaluation.evaluate()
    evaluation.accumulate()
    # (overlaps, recalls, classes, areas, limits of detections), -1 where there is no object
    precision: NDArray[np.float64] = evaluation.eval["precision"][:, :, :, :, -1]
    return Precision(
        ap=_average_known(precision[:, :, :, 0]),
        ap50=_average_known(precision[0, :, :, 0]),
        ap75=_average_known(precision[5, :, :, 0]),
        small=_average_known(precision[:, :, :, 1]),
        medium=_average_known(precision[:, :, :, 2]),
        large=_average_known(precision[:, :, :, 3]),
        per_class=tuple(_average_known(precision[:, :, number, 0]) for number in range(classes)),
    )


def _average_known(precision: NDArray[np.float64]) -> float | None:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None


def _format_share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
