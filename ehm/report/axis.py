"""An axis of a chart: ticks at round numbers, and the position of each value on the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Axis", "fit_axis"]

_ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)
"""Distances between ticks, up to a power of ten."""
_SMALL = 1e-2
"""If no value on an axis is larger than this, its ticks are written with a power of ten."""


@dataclass(frozen=True)
class Axis:
    """An axis from the value ``low``, at ``start`` on the page, to the value ``high``, at ``end``, with ``ticks``."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """Return the position of ``value`` on the page."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def format_tick(self, tick: float) -> str:
        """Return the text of a tick, with the decimals that distinguish it from its neighbours."""
        largest = max(abs(self.low), abs(self.high))
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else largest
        if largest < _SMALL:
            power = math.floor(math.log10(largest))
            return "0" if tick == 0 else f"{tick / 10**power:.4g}e{power}"
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        # steps such as 2.5 and 0.25 need one decimal more than 1 and 0.1
        if not math.isclose(round(step, decimals), step, rel_tol=1e-6):
            decimals += 1
        return f"{tick:,.{decimals}f}"


def fit_axis(values: Sequence[float], start: float, end: float, most: int, *, from_zero: bool, exact: bool) -> Axis:
    """Return an axis for ``values``, with about ``most`` ticks.

    It begins and ends at ticks, or with ``exact`` at the lowest and the highest value. With ``from_zero`` it has 0.
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
