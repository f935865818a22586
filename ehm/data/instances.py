"""Objects in images, as they were annotated and as they were found."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Detections", "Instances"]


@dataclass(frozen=True)
class Instances:
    """The n objects of an image of H x W pixels, as they were annotated.

    ``boxes`` (n, 4) float32 are left, top, right and bottom in pixels, right > left and bottom > top; ``labels`` (n,)
    int64 are class numbers; ``masks`` (n, H, W) bool, or None where objects have boxes alone.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Detections(Instances):
    """Objects as they were found, the likeliest first; ``scores`` (n,) float32 in [0, 1]."""

    scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
