"""An axis of a chart: round numbers that span the values, and where on the page each value lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Axis", "fit_axis"]

_ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)
"""Distances between ticks that people count in, times a power of ten."""
_SMALL = 1e-2
"""Size below which ticks are written with a power of ten."""


@dataclass(frozen=True)
class Axis:
    """An axis from ``low`` to ``high``, which lie at ``start`` and ``end`` on the page, with ``ticks`` in between."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """Return where ``value`` lies on the page."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def format_tick(self, tick: float) -> str:
        """Return the text of a tick, with as many decimals as tell it from its neighbours."""
        largest = max(abs(self.low), abs(self.high))
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else largest
        if largest < _SMALL:
            power = math.floor(math.log10(largest))
            return "0" if tick == 0 else f"{tick / 10**power:.4g}e{power}"
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        # 2.5 and 0.25 have one decimal more than their power of ten
        if not math.isclose(round(step, decimals), step, rel_tol=1e-6):
            decimals += 1
        return f"{tick:,.{decimals}f}"


def fit_axis(values: Sequence[float], start: float, end: float, most: int, *, from_zero: bool, exact: bool) -> Axis:
    """Return an axis for ``values``, with about ``most`` ticks.

    It ends at ticks, or with ``exact`` at the lowest and highest value; 0 is on it with ``from_zero``.
    """
    low = min(values)
    high = max(values)
    if from_zero:
        low = min(low, 0.0)
        high = max(high, 0.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # all values are equal
        margin = abs(high) / 10 or 1.0
        high += margin
        if not from_zero:
            low -= margin
    step = _choose_step((high - low) / most)
    if not exact:
        low = step * math.floor(low / step + 1e-9)
        high = step * math.ceil(high / step - 1e-9)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    ticks = tuple(step * number for number in range(first, last + 1))
    return Axis(low, high, start, end, ticks)


def _choose_step(least: float) -> float:
    """Return the smallest round distance between ticks that is not below ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    for factor in _ROUND:
        if least <= factor * power * (1 + 1e-9):
            break
    return factor * power
