"""Format numbers for people: with units, and with a sensible number of digits."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["BYTES", "PLAIN", "SHARE", "Unit", "format_number", "format_share", "format_value"]

_SMALL = 1e-3
"""Smaller numbers are written with a power of ten."""


@dataclass(frozen=True)
class Unit:
    """A unit in which values are shown: multiplied by ``factor`` and followed by ``suffix``."""

    suffix: str = ""
    factor: float = 1.0


PLAIN = Unit()
SHARE = Unit("%", 100.0)
BYTES = Unit(" GiB", 1 / 2**30)


def format_value(value: float | None, unit: Unit = PLAIN) -> str:
    """Return ``value`` in ``unit``; a dash if there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    scaled = value * unit.factor
    if unit is SHARE:
        return f"{scaled:.1f}%"
    # counts have no decimals; other values have the same number of digits as those beside them
    text = format_number(scaled) if scaled == round(scaled) else _format_measured(scaled)
    return f"{text}{unit.suffix}"


def format_share(value: float | None) -> str:
    """Return a share in [0, 1] in percent."""
    return format_value(value, SHARE)


def _format_measured(value: float) -> str:
    """Return a value with three significant digits, including zeros at the end."""
    if _SMALL <= abs(value) < 1000:
        return f"{value:#.3g}".removesuffix(".")
    return format_number(value)


def format_number(value: float) -> str:
    """Return a number with three significant digits, or if it is 1,000 or more, without decimals."""
    if value == 0:
        return "0"
    if abs(value) < _SMALL:
        digits, _, power = f"{value:.1e}".partition("e")
        return f"{digits.removesuffix('.0')}e{int(power)}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
