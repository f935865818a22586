"""Mixup and CutMix on pixels, and soft targets (Zhang et al., 2018; Yun et al., 2019; Szegedy et al., 2016).

Follows the defaults of timm's ``Mixup``, which MAE's fine-tuning uses: one draw for the whole batch, every batch mixed,
CutMix with probability 0.5 if both are on, and an image's partner is its mirror in the order of the batch.
Shapes: B images of H x W pixels, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.data.channel_images import round_to_type

__all__ = ["make_soft_targets", "mix_images", "smooth_labels"]


def make_soft_targets(labels: NDArray[np.int64], classes: int, smoothing: float = 0.0) -> NDArray[np.float32]:
    """Turn class numbers (B,) into distributions (B, C): ``smoothing`` is spread evenly over all classes."""
    targets = np.full((len(labels), classes), smoothing / classes, dtype=np.float32)
    targets[np.arange(len(labels)), labels] = 1 - smoothing + smoothing / classes
    return targets


def smooth_labels(present: NDArray[np.bool_], smoothing: float = 0.0) -> NDArray[np.float32]:
    """Turn independent labels (B, C) into targets, moved from 0 and 1 towards one half by the share ``smoothing``."""
    return (present * (1 - smoothing) + smoothing / 2).astype(np.float32)


def mix_images(
    images: NDArray[Any],
    targets: NDArray[np.float32],
    mixup: float,
    cutmix: float,
    rng: np.random.Generator,
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Mix each of (B, H, W, C) images and (B, C) targets with its partner; the inputs are not changed.

    ``mixup`` and ``cutmix`` are the parameters of the symmetric Beta distributions that the share of an image itself is
    drawn from; 0 switches one of them off. Mixed pixels are rounded to integers of their depth. The share of CutMix is
    corrected to the part of the box inside the image.
    """
    if mixup <= 0 and cutmix <= 0:
        return images, targets
    # as in timm by default, this choice and the share are drawn once for the whole batch
    is_cutmix = cutmix > 0 and (mixup <= 0 or rng.random() < 0.5)
    parameter = cutmix if is_cutmix else mixup
    share = float(rng.beta(parameter, parameter))
    if is_cutmix:
        height, width = images.shape[1:3]
        rows = _draw_span(height, share, rng)
        columns = _draw_span(width, share, rng)
        mixed = images.copy()
        mixed[:, rows, columns] = images[::-1, rows, columns]
        # the borders may have cut the box off, which leaves a larger share of the image than was drawn
        share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    else:
        # float32 is exact enough before rounding, and takes half the memory of float64
        blend = images * np.float32(share) + images[::-1] * np.float32(1 - share)
        mixed = round_to_type(blend, images.dtype)
    return mixed, (targets * share + targets[::-1] * (1 - share)).astype(np.float32)


def _draw_span(length: int, share: float, rng: np.random.Generator) -> slice:
    """Draw one side of a box of ``1 - share`` of the image's area: around a random centre, cut off at the borders."""
    size = int(length * np.sqrt(1 - share))
    centre = int(rng.integers(length))
    return slice(max(0, centre - size // 2), min(length, centre + (size + 1) // 2))
