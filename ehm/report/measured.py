"""Read the figures of ``metrics.json``, which every task writes in its own form, and find problems in them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ehm.report.confusion import Confusion, describe_confusion
from ehm.report.findings import Finding
from ehm.report.numbers import format_share
from ehm.report.record import RunRecord

__all__ = ["ClassTable", "Measurement", "find_in_measurement", "read_measurements"]

_FEWEST_IMAGES = 20
"""A class needs at least so many images for its figures to be reliable."""
_NAMED = 5
"""Classes that a sentence names, at most."""


@dataclass(frozen=True)
class ClassTable:
    """A table with a row for each of ``names``: classes, or protocols of retrieval.

    ``shares`` are the columns with bars, by heading; a value is None if it is unknown. ``counts`` are further columns.
    """

    heading: str
    names: tuple[str, ...]
    shares: Mapping[str, tuple[float | None, ...]]
    counts: Mapping[str, tuple[int, ...]]

    @property
    def worst_first(self) -> list[int]:
        """The numbers of the rows, sorted by the last column of shares; rows without a value come last."""
        if not self.shares:
            return list(range(len(self.names)))
        column = list(self.shares.values())[-1]
        return sorted(range(len(self.names)), key=lambda row: (column[row] is None, column[row] or 0.0))


@dataclass(frozen=True)
class Measurement:
    """A measurement: its main ``figures`` by name, a table, and the confusion of a classifier.

    ``images`` is the number of samples, and ``unit`` the plural of the word for them.
    """

    title: str
    images: int | None
    figures: Mapping[str, float | None]
    table: ClassTable | None
    confusion: Confusion | None = None
    unit: str = "images"


def read_measurements(record: RunRecord) -> list[Measurement]:
    """Return the measurements in ``metrics.json`` of a run; empty if there are none yet, or if keys are missing."""
    metrics = record.metrics
    try:
        if record.kind == "classification":
            return [_read_classification(metrics, "Held-out images")]
        if record.kind == "probe":
            parts = {"linear": "Linear probe", "neighbours": "Nearest neighbours"}
            # until the end of the probe, the file only has the figures of the linear probe
            if "linear" not in metrics:
                return [_read_classification(metrics, parts["linear"])]
            return [_read_classification(metrics[key], title) for key, title in parts.items()]
        if record.kind == "segmentation":
            return [_read_segmenter(metrics)]
        if record.kind == "detection":
            return [_read_detector(metrics)]
        if record.kind == "retrieval":
            return [_read_retrieval(metrics)]
        if record.kind == "vision_language":
            benchmarks = metrics["benchmarks"]
            # if there are several, "part" only says how many, which is not worth showing
            part = metrics if len(benchmarks) == 1 else {}
            return [_read_questions(part, benchmark) for benchmark in benchmarks]
    except (KeyError, TypeError, IndexError, ValueError):
        return []
    return []


def find_in_measurement(measurement: Measurement) -> list[Finding]:
    """Return findings about the figures of a classifier or of answers; none for other tasks."""
    table = measurement.table
    if measurement.unit == "questions":
        return _find_in_answers(measurement)
    if table is None or "images" not in table.counts or not measurement.images:
        return []
    if table.heading == "label":
        return _find_in_labels(table, measurement.images)
    if measurement.confusion is None:
        return []
    return _find_in_classes(table, measurement.figures["Top-1"] or 0.0, measurement.images)


def _find_in_classes(table: ClassTable, accuracy: float, images: int) -> list[Finding]:
    """Report a classifier that is no better than a guess, and classes that it never predicts or that are few."""
    support = table.counts["images"]
    found = []
    error = math.sqrt(accuracy * (1 - accuracy) / images)  # the standard error of a share
    largest = max(range(len(support)), key=support.__getitem__)
    guess = support[largest] / images
    if accuracy <= guess + 2 * error:
        found.append(
            Finding(
                "warning",
                f"Top-1 {format_share(accuracy)} is no better than answering {table.names[largest]} every time "
                f"({format_share(guess)}).",
                "Look at the balanced accuracy and at the classes; train longer, or check the labels.",
            )
        )
    never = _list_never_predicted(table)
    if never:
        found.append(Finding("warning", f"{_name_some(never)} never predicted.", "Add images of them."))
    few = [name for name, count in zip(table.names, support, strict=True) if 0 < count < _FEWEST_IMAGES]
    if few:
        found.append(
            Finding(
                "note",
                f"Fewer than {_FEWEST_IMAGES} images measure {len(few)} of the {len(support)} classes, whose figures "
                "therefore mean little.",
            )
        )
    if error > 0:
        found.append(
            Finding(
                "note",
                f"On {images:,} images the standard error of top-1 is {100 * error:.1f} points: take "
                f"differences below {200 * error:.1f} points for chance.",
            )
        )
    return found


def _find_in_labels(table: ClassTable, images: int) -> list[Finding]:
    """Report labels that are ranked no better than by chance, and labels that are measured by few images."""
    guessed = []
    few = []
    for name, precision, count in zip(
        table.names, table.shares["average precision"], table.counts["images"], strict=True
    ):
        # the average precision of a random ranking is the share of images with the label
        if precision is not None and precision <= count / images:
            guessed.append(name)
        if 0 < count < _FEWEST_IMAGES:
            few.append(name)
    found = []
    if guessed:
        found.append(
            Finding(
                "warning",
                f"{_name_some(guessed)} ranked no better than by chance: the average precision is no more than the "
                "share of images with the label.",
                "Train longer, add images with the label, or check it.",
            )
        )
    if few:
        found.append(
            Finding(
                "note",
                f"Fewer than {_FEWEST_IMAGES} images measure {len(few)} of the {len(table.names)} labels, whose "
                "figures and thresholds therefore mean little.",
            )
        )
    return found


def _find_in_answers(measurement: Measurement) -> list[Finding]:
    """Report answers that are no better than those of a baseline without images."""
    accuracy = measurement.figures.get("Accuracy")
    if accuracy is None or not measurement.images:
        return []
    error = math.sqrt(accuracy * (1 - accuracy) / measurement.images)
    found = []
    for name, what in (
        ("On blank images", "the same model on blank images"),
        ("Commonest answer of each object", "the commonest answer of each object's name"),
        ("Commonest answer", "the commonest answer of each kind of question"),
    ):
        known = measurement.figures.get(name)
        if known is not None and accuracy <= known + 2 * error:
            found.append(
                Finding(
                    "warning",
                    f"{measurement.title}: accuracy {format_share(accuracy)} is no better than {what} "
                    f"({format_share(known)}), which needs no image.",
                    "Look at the figures of each kind of question, and train longer.",
                )
            )
    return found


def _list_never_predicted(table: ClassTable) -> list[str]:
    names = []
    for name, precision, recall, count in zip(
        table.names, table.shares["precision"], table.shares["recall"], table.counts["images"], strict=True
    ):
        if count and not precision and not recall:
            names.append(name)
    return names


def _name_some(names: Sequence[str]) -> str:
    """Return some of ``names`` and the number of others, followed by "is" or "are"."""
    shown = ", ".join(names[:_NAMED])
    if len(names) > _NAMED:
        shown += f" and {len(names) - _NAMED} more"
    return f"{shown} {'is' if len(names) == 1 else 'are'}"


def _read_classification(values: Mapping[str, Any], title: str) -> Measurement:
    return _read_multi_label(values, title) if "mean_ap" in values else _read_classifier(values, title)


def _read_multi_label(values: Mapping[str, Any], title: str) -> Measurement:
    figures = {
        "mAP": values["mean_ap"],
        "Macro F1": values["macro_f1"],
        "Micro F1": values["micro_f1"],
        "All labels right": values["exact"],
    }
    shares: dict[str, tuple[float | None, ...]] = {}
    for key, name in (
        ("thresholds", "threshold"),
        ("precision", "precision"),
        ("recall", "recall"),
        ("f1", "F1"),
        ("auc", "AUC"),
        ("average_precision", "average precision"),
    ):
        shares[name] = tuple(values[key])
    counts = {"images": tuple(values["support"])}
    table = ClassTable("label", tuple(map(str, values["classes"])), shares, counts)
    return Measurement(_name_part(values, title), values["samples"], figures, table)


def _read_classifier(values: Mapping[str, Any], title: str) -> Measurement:
    classes = tuple(map(str, values["classes"]))
    figures = {
        "Top-1": values["top1"],
        "Top-5": values.get("top5"),
        "Balanced accuracy": values["balanced_accuracy"],
        "AUC": values.get("auc"),
    }
    shares = {}
    for key, name in (("precision", "precision"), ("recall", "recall"), ("f1", "F1")):
        shares[name] = tuple(values[key])
    counts = {"images": tuple(values["support"])}
    return Measurement(
        _name_part(values, title),
        values["samples"],
        {name: figure for name, figure in figures.items() if figure is not None},
        ClassTable("class", classes, shares, counts),
        describe_confusion(classes, values["confusion"]),
    )


def _read_segmenter(values: Mapping[str, Any]) -> Measurement:
    shares = {"accuracy": tuple(values["accuracy"]), "IoU": tuple(values["iou"])}
    counts = {"pixels": tuple(values["pixels"])}
    table = ClassTable("class", tuple(map(str, values["classes"])), shares, counts)
    figures = {"mIoU": values["miou"], "mAcc": values["macc"], "aAcc": values["aacc"]}
    return Measurement(_name_part(values, "Held-out images"), values["images"], figures, table)


def _read_detector(values: Mapping[str, Any]) -> Measurement:
    figures = {}
    shares = {}
    # boxes come last, because the last column of shares decides the order of classes
    for part in ("masks", "boxes"):
        precision = values.get(part)
        if precision is not None:
            shares[f"AP of {part}"] = tuple(precision["per_class"])
    for part in ("boxes", "masks"):
        precision = values.get(part)
        if precision is not None:
            for key, name in (("ap", "AP"), ("ap50", "AP50"), ("ap75", "AP75")):
                figures[f"{name} of {part}"] = precision[key]
    counts = {"objects": tuple(values["objects"])}
    table = ClassTable("class", tuple(map(str, values["classes"])), shares, counts)
    return Measurement(_name_part(values, "Held-out images"), values["images"], figures, table)


def _read_retrieval(values: Mapping[str, Any]) -> Measurement:
    protocols = values["protocols"]
    shares: dict[str, tuple[float | None, ...]] = {}
    for place, kappa in enumerate(values["kappas"]):
        shares[f"mP@{kappa}"] = tuple(protocol["precision"][place] for protocol in protocols.values())
    shares["mAP"] = tuple(protocol["map"] for protocol in protocols.values())
    counts = {"queries": tuple(protocol["queries"] for protocol in protocols.values())}
    figures = {}
    for name, protocol in protocols.items():
        figures["mAP" if name == "all" else f"mAP {name}"] = protocol["map"]
    table = ClassTable("protocol", tuple(protocols), shares, counts)
    return Measurement(_name_part(values, "Held-out queries"), values["images"], figures, table)


def _read_questions(values: Mapping[str, Any], benchmark: Mapping[str, Any]) -> Measurement:
    figures = {
        "Accuracy": benchmark["accuracy"],
        "By VQA's official rule": benchmark["exact"],
        "On blank images": benchmark["blank"],
        "Commonest answer": benchmark["commonest"],
        "Commonest answer of each object": benchmark["commonest_of_subject"],
    }
    rows = [*benchmark["kinds"], *benchmark["groups"]]
    shares = {}
    for key, name in (("commonest", "commonest answer"), ("blank", "blank images"), ("accuracy", "accuracy")):
        shares[name] = tuple(row[key] for row in rows)
    counts = {"questions": tuple(row["questions"] for row in rows)}
    table = ClassTable("questions", tuple(str(row["name"]) for row in rows), shares, counts)
    return Measurement(
        _name_part(values, str(benchmark["name"])),
        benchmark["questions"],
        {name: figure for name, figure in figures.items() if figure is not None},
        table,
        unit="questions",
    )


def _name_part(values: Mapping[str, Any], title: str) -> str:
    part = values.get("part")
    return f"{title} ({part})" if part else title
