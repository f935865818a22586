"""Find problems in the curves of a run, and say in sentences what they are and what to change."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ehm.report.known_figures import ROWS_BY_KEY
from ehm.report.numbers import format_number, format_share
from ehm.report.record import RunRecord

__all__ = ["LASTING", "LONG_WAITS", "LOWEST_RANK", "LOWEST_SPREAD", "Finding", "find_in_curves"]

Level = Literal["warning", "note", "good"]
_FEWEST_LINES = 12
"""Logged values that a curve needs at least for its trend to be judged."""
_STILL_FALLING = 0.1
"""If the last fifth of a run has more than this share of the whole fall of the loss, a longer run is suggested."""
_FEWEST_MEASUREMENTS = 4
"""Measurements that a curve needs at least for its trend to be judged."""
_FELL = 0.02
"""Fall of an accuracy below its best that is reported; smaller ones are noise on a few hundred images."""
LASTING = 3
"""Measurements in a row that have to be low for a fall to be reported, here and while a run trains."""
LOWEST_RANK = 0.5
"""RankMe has fallen if it is below this share of its best value; it often settles a little below that."""
LOWEST_SPREAD = 0.01
"""Spread of the features below which they are nearly the same for all images."""
_LOWEST_TARGET_SPREAD = 0.1
"""The spread of the targets has fallen if it is below this share of its highest value."""
LONG_WAITS = {"data_wait": 0.2, "masks_wait": 0.4}
"""Shares of the time above which a wait is reported, here and while a run trains.

The limit for masks is higher because they normally take time: made from attention on a CPU, a sixth of the time of a
ViT-B (docs/cost.md), and a third of that of a small network.
"""
_CHAIN = 0.5
"""A tree whose height is more than this share of the number of patches is a chain."""
_PEAK = 20.0
"""A gradient norm is a peak if it is more than so many times the median."""


@dataclass(frozen=True)
class Finding:
    """An observation about a run, and a remedy if one is needed."""

    level: Level
    text: str
    remedy: str = ""


def find_in_curves(record: RunRecord) -> list[Finding]:
    """Return the findings of all checks of the curves of a run."""
    found: list[Finding] = []
    for check in (
        _check_broken,
        _check_values,
        _check_measured,
        _check_accuracies,
        _check_collapse,
        _check_loss,
        _check_gradients,
        _check_waits,
        _check_trees,
        _check_best,
    ):
        found += check(record)
    return found


def _check_broken(record: RunRecord) -> Iterator[Finding]:
    """Report a step whose loss is not finite, if the run kept it."""
    folder = record.folder / "broken"
    if folder.is_dir() and any(folder.iterdir()):
        yield Finding(
            "warning",
            f"A step of this run had a loss that is not finite; its batch and the weights before it are in {folder}.",
            f"ehm train --replay {folder} says where its numbers break. A lower optim.base_lr, optim.clip_grad=1 or "
            "optim.dtype=float32 may help.",
        )


def _check_values(record: RunRecord) -> Iterator[Finding]:
    """Report figures with values that are not finite."""
    for key, curve in record.curves.by_key.items():
        count = len(curve.values) - len(curve.finite.values)
        if count:
            yield Finding("warning", f"{key} has {count:,} values that are not finite; its line has gaps there.")


def _check_measured(record: RunRecord) -> Iterator[Finding]:
    """Report that the features of a pretraining run were not measured; its loss does not measure them."""
    has_figure = any(record.curves.find(key) for key in ("knn", "linear", "rankme"))
    if record.kind == "pretrain" and record.step > 0 and not has_figure:
        yield Finding(
            "note",
            "Nothing here tells how good the features are: they were not measured during the run.",
            "Measure them with ehm probe or ehm compare; the commands are below.",
        )


def _check_accuracies(record: RunRecord) -> Iterator[Finding]:
    """Compare the last k-NN accuracy with the best one, or that of the linear probe if there is no k-NN."""
    for key, name in (("knn", "k-NN accuracy"), ("linear", "accuracy of the linear probe")):
        curve = record.curves.find(key)
        if curve is None or len(curve.values) < _FEWEST_MEASUREMENTS:
            continue
        best = max(range(len(curve.values)), key=curve.values.__getitem__)
        last = curve.values[-1]
        if max(curve.values[-2:]) < curve.values[best] - _FELL:
            yield Finding(
                "warning",
                f"The {name} fell from {format_share(curve.values[best])} at step {curve.steps[best]:,} to "
                f"{format_share(last)} at the end.",
                "The checkpoint of the best measurement is in the folder best, if the run kept it. A lower learning "
                "rate (optim.base_lr) or a shorter run may help.",
            )
        elif record.is_complete and last - curve.average_between(0.5, 0.75) > _FELL:
            yield Finding(
                "note",
                f"The {name} was still rising at the end, to {format_share(last)}.",
                f"A longer run is likely to give better features: {_double_length(record)}.",
            )
        return


def _check_collapse(record: RunRecord) -> Iterator[Finding]:
    """Report a collapse of features or targets: a figure that fell far and stayed low."""
    for key in ("rankme", "feature_spread", "target_spread"):
        curve = record.curves.find(key)
        if curve is None or len(curve.values) < _FEWEST_MEASUREMENTS:
            continue
        highest = max(curve.values)
        bounds = {
            "rankme": LOWEST_RANK * highest,
            "feature_spread": LOWEST_SPREAD,
            "target_spread": _LOWEST_TARGET_SPREAD * highest,
        }
        if max(curve.values[-LASTING:]) < bounds[key]:
            title = ROWS_BY_KEY[key].title
            yield Finding(
                "warning",
                f"{title} fell from {format_number(highest)} to {format_number(curve.values[-1])} and stayed low: the "
                "features collapse, and images look more and more alike to the encoder.",
                "Go back to an earlier checkpoint. A lower optim.base_lr or a longer warm-up may help; with objective "
                "feature also a higher optim.ema_decay.",
            )


def _check_loss(record: RunRecord) -> Iterator[Finding]:
    """Report a loss that was still falling at the end of a complete run."""
    curve = record.curves.find("loss")
    if curve is None or len(curve.values) < _FEWEST_LINES or not record.is_complete:
        return
    before = curve.average_between(0.6, 0.8)
    end = curve.average_between(0.8, 1.0)
    fall = curve.average_between(0.0, 0.05) - end
    if fall > 0 and before - end > _STILL_FALLING * fall:
        better = "held-out figures" if record.is_task else "k-NN or fine-tuning"
        yield Finding(
            "note",
            f"The loss was still falling at the end: the last fifth of the run brought {(before - end) / fall:.0%} of "
            "its whole fall.",
            f"Try a longer run ({_double_length(record)}), and compare the two by {better}, because the loss says "
            "little.",
        )


def _check_gradients(record: RunRecord) -> Iterator[Finding]:
    """Report peaks of the gradient norm in the second half of the run."""
    curve = record.curves.find("grad_norm")
    if curve is None or len(curve.values) < _FEWEST_LINES:
        return
    median = sorted(curve.values)[len(curve.values) // 2]
    later = curve.values[len(curve.values) // 2 :]
    highest = max(later)
    if highest > _PEAK * median:
        yield Finding(
            "warning",
            f"The gradient norm has peaks of {format_number(highest)} in the second half of the run; its median is "
            f"{format_number(median)}.",
            "Set optim.clip_grad=1, or lower optim.base_lr.",
        )


def _check_waits(record: RunRecord) -> Iterator[Finding]:
    """Report a device that waited long for images or for masks."""
    remedies = {
        "data_wait": "Raise data.workers; smaller image files, or a faster disk, help as well.",
        "masks_wait": "Set mask.build=device on an accelerator; mask.views, or fewer mask.blocks, make masks cheaper.",
    }
    for key, what in (("data_wait", "images"), ("masks_wait", "masks")):
        curve = record.curves.find(key)
        if curve is None:
            continue
        # without the first quarter, in which workers start and kernels are compiled
        wait = curve.average_between(0.25, 1.0)
        if math.isfinite(wait) and wait > LONG_WAITS[key]:
            yield Finding("warning", f"The device waited for {what} {wait:.0%} of the time.", remedies[key])


def _check_trees(record: RunRecord) -> Iterator[Finding]:
    """Report hierarchies that are chains."""
    curve = record.curves.find("tree_height")
    patches = _count_units(record)
    if curve is None or patches is None:
        return
    height = curve.average_between(0.75, 1.0)
    if math.isfinite(height) and height > _CHAIN * patches:
        yield Finding(
            "warning",
            f"The trees are chains: at the end they are {height:.0f} levels high, for {patches} patches.",
            "Set mask.balance=sinkhorn or mask.similarity=cosine, so that a few patches do not attract all others.",
        )


def _check_best(record: RunRecord) -> Iterator[Finding]:
    """Report an earlier checkpoint of a task that is better than the last one."""
    best = record.metrics.get("best")
    if not isinstance(best, Mapping) or "checkpoint" not in best:
        return
    # best has two keys: the checkpoint, and the figure that it was chosen by
    for key, score in best.items():
        curve = record.curves.find(key)
        if curve is None or score - curve.values[-1] < _FELL / 2:
            continue
        yield Finding(
            "note",
            f"An earlier checkpoint has a higher {key.replace('_', ' ')}: {format_share(score)} instead of "
            f"{format_share(curve.values[-1])} at the end. It was chosen on the images that it is measured on, which "
            "flatters it.",
            f"It is {best['checkpoint']}. If the figure kept falling, a shorter run or stronger augmentation may help.",
        )


def _count_units(record: RunRecord) -> int | None:
    """Return the number of mask units of an image, None if it does not follow from the configuration."""
    size: Any = record.setting("image_size")
    unit = record.setting("mask.unit") or record.setting("patch_size")
    # for a Swin it does not, because its output tokens are larger than its patches
    if not isinstance(size, list | tuple) or not unit or str(record.setting("encoder")).startswith("swin"):
        return None
    return int(size[0] // unit * (size[1] // unit))


def _double_length(record: RunRecord) -> str:
    """Return the setting that makes the run twice as long."""
    if record.setting("optim.steps"):
        return f"optim.steps={2 * int(record.setting('optim.steps'))}"
    return f"optim.epochs={2 * int(record.setting('optim.epochs'))}"
