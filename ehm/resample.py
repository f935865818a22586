"""Resampling as matrices, so that every backend resamples in the same way."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["bicubic"]


def bicubic(new: int, old: int) -> NDArray[np.float64]:
    """(new, old) weights of one axis: Keys's cubic kernel, a = -1/2, widened when shrinking and normalised at borders.

    Keys, "Cubic convolution interpolation for digital image processing" (1981), Eq. 15; what Pillow's BICUBIC and
    torch's antialiased ``interpolate`` do.
    """
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale
    x = np.abs((np.arange(old) + 0.5 - centres[:, None]) / max(scale, 1))
    weights = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((2.5 - 0.5 * x) * x - 4) * x + 2, 0))
    normalised: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return normalised
