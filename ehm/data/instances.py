"""Objects in images, as they were annotated and as they were found."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["Detections", "Instances", "MirrorTransform", "mirror"]


@dataclass(frozen=True)
class Instances:
    """The n objects of an image of H x W pixels, as they were annotated.

    ``boxes`` (n, 4) float32 are left, top, right and bottom in pixels, right > left and bottom > top; ``labels`` (n,)
    int64 are class numbers; ``masks`` (n, H, W) bool, or None if objects have boxes alone.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Detections(Instances):
    """Objects as they were found, the likeliest first; ``scores`` (n,) float32 in [0, 1]."""

    scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))


AnnotatedImage = tuple[NDArray[np.uint8], Instances]
"""An image (H, W, 3) and its objects."""


@dataclass(frozen=True)
class MirrorTransform:
    """Mirrors half of the images, drawn at random, if ``flip`` is set; images keep their sizes."""

    flip: bool = False
    shape: None = None

    def __call__(self, image: AnnotatedImage, rng: np.random.Generator) -> AnnotatedImage:
        """Return an image and its objects, mirrored or as they are."""
        if self.flip and rng.random() < 0.5:
            return mirror(*image)
        return image


def mirror(image: NDArray[np.uint8], objects: Instances) -> AnnotatedImage:
    """Exchange left and right in an image (H, W, 3) and in its objects."""
    # the right border becomes the left one, so that left stays the smaller
    boxes = objects.boxes.copy()
    boxes[:, [0, 2]] = image.shape[1] - objects.boxes[:, [2, 0]]
    # copied, as frameworks take no arrays that run backwards in memory
    masks = objects.masks
    if masks is not None:
        masks = np.ascontiguousarray(masks[:, :, ::-1])
    return np.ascontiguousarray(image[:, ::-1]), replace(objects, boxes=boxes, masks=masks)
