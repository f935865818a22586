"""Channels that an image does not show: those of the embedding that are left out as a whole, for a step.

Training on random channels makes an encoder answer to images that lack some, as hierarchical channel sampling does
(Bao et al., 2024, "Channel Vision Transformers"), with a fixed number of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["count_hidden_channels", "draw_channel_factors", "draw_shown_channels"]

_STREAM = 7
"""Begins the seed of the draws, which keeps their random numbers apart from those of masks and samples."""


def count_hidden_channels(channels: int, share: float) -> int:
    """Return the number of ``channels`` that ``share`` of them leaves out, rounded to the nearest."""
    return round(channels * share)


def draw_shown_channels(images: int, channels: int, share: float, seed: Sequence[int]) -> NDArray[np.bool_]:
    """Draw the channels that each image shows: (B, C), False for the ``share`` that is left out, of every image alike.

    The same ``seed``, whole numbers from 0, gives the same draws.
    """
    rng = np.random.default_rng([_STREAM, *seed])
    hidden = count_hidden_channels(channels, share)
    # the places of the lowest random numbers of each image
    order = rng.random((images, channels)).argsort(axis=1)
    shown = np.ones((images, channels), bool)
    np.put_along_axis(shown, order[:, :hidden], False, axis=1)
    return shown


def draw_channel_factors(images: int, channels: int, share: float, seed: Sequence[int]) -> NDArray[np.float32] | None:
    """Draw factors (B, C) of the channels of images, 0 for those of :func:`draw_shown_channels` that are left out.

    None if ``share`` is 0, so that nothing has to be multiplied.
    """
    if not share:
        return None
    return draw_shown_channels(images, channels, share, seed).astype(np.float32)
