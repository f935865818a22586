"""Drawing some of many questions once, the same ones in every run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

__all__ = ["DRAWING_SEED", "draw_limited"]

T = TypeVar("T")
DRAWING_SEED = 0
"""Seed of what is drawn when questions are opened: it is part of the data, and not of a run."""


def draw_limited(items: Sequence[T], limit: int | None) -> list[T]:
    """Return ``limit`` of ``items``, drawn without replacement and in their order; all if there are not more."""
    if limit is None or len(items) <= limit:
        return list(items)
    chosen = np.random.default_rng(DRAWING_SEED).choice(len(items), limit, replace=False)
    return [items[index] for index in np.sort(chosen).tolist()]
