"""Results as plain values, which JSON can say: texts, numbers, lists and dictionaries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

__all__ = ["to_plain"]


def to_plain(value: Any) -> Any:
    """Return ``value`` in plain values: a path as text, a result as a dictionary of its fields.

    An object with ``to_json`` says itself what it is, and an array becomes a list. JSON has no number for NaN and
    infinity, which become null.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "to_json"):
        return to_plain(value.to_json())
    if hasattr(value, "tolist"):  # an array or a number of NumPy
        return to_plain(value.tolist())
    if is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(each) for key, each in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [to_plain(each) for each in value]
    raise TypeError(f"{type(value).__name__} has no plain value")
