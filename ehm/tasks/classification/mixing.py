"""Mixup and CutMix on bytes, and soft targets (Zhang et al., 2018; Yun et al., 2019; Szegedy et al., 2016).

Follows the defaults of timm's ``Mixup``, which MAE's fine-tuning uses: one draw for the whole batch, every batch mixed,
CutMix with probability 0.5 where both are on, and an image's partner is its mirror in the order of the batch.
Shapes: B images of H x W pixels, C classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["mix", "soft_targets"]


def soft_targets(labels: NDArray[np.int64], classes: int, smoothing: float = 0.0) -> NDArray[np.float32]:
    """Class numbers (B,) -> distributions (B, C): ``smoothing`` is spread evenly over all classes."""
    targets = np.full((len(labels), classes), smoothing / classes, dtype=np.float32)
    targets[np.arange(len(labels)), labels] = 1 - smoothing + smoothing / classes
    return targets


def mix(
    images: NDArray[np.uint8],
    targets: NDArray[np.float32],
    mixup: float,
    cutmix: float,
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Mix each of (B, H, W, 3) images and (B, C) targets with its partner; the inputs stay as they are.

    ``mixup`` and ``cutmix`` are the parameters of the symmetric Beta distributions that an image's own share is drawn
    from; 0 switches one off. Mixed pixels are rounded to the nearest byte: an error of at most half a grey level.
    CutMix's share is corrected to the part of the box that lies inside the image.
    """
    if mixup <= 0 and cutmix <= 0:
        return images, targets
    cut = cutmix > 0 and (mixup <= 0 or rng.random() < 0.5)
    share = float(rng.beta(cutmix, cutmix) if cut else rng.beta(mixup, mixup))
    if cut:
        rows, columns = _box(images.shape[1], images.shape[2], share, rng)
        mixed = images.copy()
        mixed[:, rows, columns] = images[::-1, rows, columns]
        share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (images.shape[1] * images.shape[2])
    else:
        blend = images * np.float32(share) + images[::-1] * np.float32(1 - share)
        mixed = np.rint(blend).astype(np.uint8)
    return mixed, (targets * share + targets[::-1] * (1 - share)).astype(np.float32)


def _box(height: int, width: int, share: float, rng: np.random.Generator) -> tuple[slice, slice]:
    """A box of ``1 - share`` of the area around a random centre, cut off at the image's borders."""
    side = np.sqrt(1 - share)

    def span(length: int) -> slice:
        size, centre = int(length * side), int(rng.integers(length))
        return slice(max(0, centre - size // 2), min(length, centre + (size + 1) // 2))

    return span(height), span(width)
