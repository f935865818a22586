"""Objects in an image by a detector's bundle: NumPy alone around the network.

Shapes: an image of H x W pixels, K objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.data.bilinear import neighbours
from ehm.deploy.bundle.manifest import Fit

__all__ = ["Found", "Placed", "bilinear", "found_in", "paste", "place"]


@dataclass(frozen=True)
class Found:
    """An object: its class, a score in [0, 1], ``box`` (left, top, right, bottom) in pixels, and ``mask`` (H, W)."""

    label: str
    score: float
    box: tuple[float, float, float, float]
    mask: NDArray[np.bool_] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values; the mask as COCO's uncompressed run-length code."""
        found: dict[str, Any] = {"label": self.label, "score": self.score, "box": list(self.box)}
        return found if self.mask is None else {**found, "mask": _runs(self.mask)}


@dataclass(frozen=True)
class Placed:
    """``pixels`` (H, W, 3) float32 for the network, of which the image takes the upper left; its sizes there and own.

    Sizes are (height, width).
    """

    pixels: NDArray[np.float32]
    inside: tuple[int, int]
    own: tuple[int, int]


def place(image: NDArray[np.uint8], rule: Fit, image_size: tuple[int, int], fill: NDArray[np.float32]) -> Placed:
    """Resize an image (h, w, 3) as ``rule`` says, into ``image_size``; what is left of that is ``fill`` (3,)."""
    height, width = image.shape[:2]
    scale = min(rule.shorter / min(height, width), rule.longer / max(height, width))
    scale = min(scale, image_size[0] / height, image_size[1] / width)
    inside = max(1, int(height * scale)), max(1, int(width * scale))
    pixels = np.broadcast_to(fill, (*image_size, 3)).astype(np.float32)
    pixels[: inside[0], : inside[1]] = bilinear(image.astype(np.float32), inside)
    return Placed(pixels, inside, (height, width))


def found_in(outputs: dict[str, NDArray[Any]], placed: Placed, rule: Fit, labels: tuple[str, ...]) -> list[Found]:
    """The network's outputs as objects of the image, the likeliest first: those of ``rule.threshold`` at least."""
    height, width = placed.own
    across, down = width / placed.inside[1], height / placed.inside[0]
    boxes = outputs["boxes"] * np.array([across, down, across, down], np.float32)
    boxes = boxes.clip(0, np.array([width, height, width, height], np.float32))
    found = []
    for index in np.flatnonzero(outputs["scores"] > rule.threshold):
        box, masks = boxes[index], outputs.get("masks")
        if box[2] <= box[0] or box[3] <= box[1]:  # beside the image
            continue
        mask = None if masks is None else paste(masks[index], box, placed.own)
        left, top, right, bottom = map(float, box)
        score = float(outputs["scores"][index])
        found.append(Found(labels[int(outputs["labels"][index])], score, (left, top, right, bottom), mask))
    return found


def paste(mask: NDArray[np.float32], box: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Probabilities (28, 28) inside ``box`` -> where they exceed a half in an image of ``size``, as in torchvision."""
    side = mask.shape[0]
    padded = np.pad(mask, 1)
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * ((side + 2) / side)
    left, top, right, bottom = np.concatenate([centre - half, centre + half]).astype(np.int64).tolist()
    width, height = max(right - left + 1, 1), max(bottom - top + 1, 1)
    inside = bilinear(padded[..., None], (height, width))[..., 0] > 0.5
    whole = np.zeros(size, bool)
    rows, columns = slice(max(top, 0), min(bottom + 1, size[0])), slice(max(left, 0), min(right + 1, size[1]))
    whole[rows, columns] = inside[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return whole


def bilinear(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """(h, w, D) -> (height, width, D), without smoothing first: as torch's ``interpolate``, ``align_corners`` false."""
    for axis, length in enumerate(size):
        before, after, share = neighbours(values.shape[axis], length)
        share = share.reshape(-1, *[1] * (values.ndim - 1 - axis))
        values = values.take(before, axis) * (1 - share) + values.take(after, axis) * share
    return values


def _runs(mask: NDArray[np.bool_]) -> dict[str, Any]:
    flat = np.concatenate([[False], mask.T.ravel()])  # COCO's codes begin with a run of zeros, down the columns
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], ends, [mask.size]]))
    return {"size": list(mask.shape), "counts": counts.tolist()}
