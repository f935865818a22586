"""The curves of a run, read from the lines of its ``metrics.jsonl``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Curve", "Curves", "read_curves"]


@dataclass(frozen=True)
class Curve:
    """The values of one figure and the steps after which they were taken, in order; values may be NaN."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def finite(self) -> Curve:
        """The curve without values that are NaN or infinite."""
        pairs = [(step, value) for step, value in zip(self.steps, self.values, strict=True) if math.isfinite(value)]
        return Curve(tuple(step for step, _ in pairs), tuple(value for _, value in pairs))

    def average_between(self, start: float, end: float) -> float:
        """Return the mean value between two fractions of the curve's length, each in [0, 1]; NaN if there is none."""
        first = self.steps[0]
        length = max(1, self.steps[-1] - first)
        chosen = []
        for step, value in zip(self.steps, self.values, strict=True):
            if start <= (step - first) / length <= end:
                chosen.append(value)
        return sum(chosen) / len(chosen) if chosen else math.nan


@dataclass(frozen=True)
class Curves:
    """All curves of a run by the key of their figure, and the ``last_step`` that was logged, 0 if none was.

    ``steps_per_epoch`` is None if the lines have no epoch.
    """

    by_key: Mapping[str, Curve]
    last_step: int = 0
    steps_per_epoch: int | None = None

    def find(self, key: str) -> Curve | None:
        """Return the finite values of the figure ``key``; None if there are none."""
        curve = self.by_key.get(key)
        if curve is None or not curve.finite.steps:
            return None
        return curve.finite


def read_curves(path: Path) -> Curves:
    """Read the log of a run, which may still be running: lines that are cut off or have no metrics are left out."""
    lines: dict[int, dict[str, float]] = {}
    if path.is_file():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            values = _parse_line(text)
            if values is not None:
                # if a step was taken again, the last of its lines counts
                lines[int(values.pop("step"))] = values
    points: dict[str, list[tuple[int, float]]] = {}
    steps_per_epoch = None
    for step in sorted(lines):
        epoch = lines[step].pop("epoch", 0.0)
        if epoch > 0:
            steps_per_epoch = round(step / epoch)
        for key, value in lines[step].items():
            points.setdefault(key, []).append((step, value))
    by_key = {}
    for key, pairs in points.items():
        by_key[key] = Curve(tuple(step for step, _ in pairs), tuple(value for _, value in pairs))
    return Curves(by_key, max(lines, default=0), steps_per_epoch)


def _parse_line(text: str) -> dict[str, float] | None:
    """Return the numbers of a line, including ``step``, or None if it is not a line of metrics."""
    try:
        values = json.loads(text)
    except ValueError:
        return None
    if not isinstance(values, dict) or not _is_number(values.get("step")):
        return None
    return {key: float(value) for key, value in values.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
