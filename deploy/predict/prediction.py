"""The prediction of one image: as values, as JSON and as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ehm.deploy.predict.detection import DetectedObject

__all__ = ["Prediction"]


@dataclass(frozen=True)
class Prediction:
    """The prediction for an image, or the ``error`` that kept the image from being read.

    ``classes`` are the likeliest with their probabilities, and of a classifier of several labels an image ``present``
    names those that it has. ``features`` (D,) and ``patches`` (D, h, w) are there as far
    as the bundle gives them. A detector gives ``objects``, the likeliest first. A segmenter gives ``labels`` (H, W),
    the class numbers of the pixels, ``mask``, the file that holds them if one was written, and ``classes``, those that
    occur with their shares of the pixels. The eyes of a language model give ``visual_tokens`` (K, W).
    ``missing_pixels`` counts the pixels for which a deep image has no value.
    """

    image: str
    classes: tuple[tuple[str, float], ...] = ()
    features: NDArray[np.float32] | None = None
    patches: NDArray[np.float32] | None = None
    objects: tuple[DetectedObject, ...] | None = None
    labels: NDArray[np.uint8] | None = None
    visual_tokens: NDArray[np.float32] | None = None
    mask: str | None = None
    error: str | None = None
    missing_pixels: int = 0
    present: tuple[str, ...] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the plain values that ``--json`` prints."""
        # an image that cannot be read has no other fields
        if self.error is not None:
            return {"image": self.image, "error": self.error}
        values: dict[str, Any] = {"image": self.image}
        if self.missing_pixels:
            values["missing_pixels"] = self.missing_pixels
        if self.mask is not None:
            values["mask"] = self.mask
        if self.classes:
            # a segmenter's figures are shares of the pixels, a classifier's are probabilities
            key = "probability" if self.labels is None else "share"
            values["classes"] = [{"label": name, key: share} for name, share in self.classes]
        if self.present is not None:
            values["present"] = list(self.present)
        if self.objects is not None:
            values["objects"] = [found.as_dict() for found in self.objects]
        if self.features is not None:
            values["features"] = self.features.tolist()
        if self.patches is not None:
            values["patches"] = self.patches.tolist()
        if self.visual_tokens is not None:
            values["visual_tokens"] = self.visual_tokens.tolist()
        return values

    def __str__(self) -> str:
        if self.error is not None:
            return f"{self.image}: {self.error}"
        lines = [self.image]
        for name, share in self.classes:
            is_present = self.present is not None and name in self.present
            lines.append(f"  {share:.4f}  {name}{', present' if is_present else ''}")
        for found in self.objects or ():
            box = ", ".join(f"{side:.0f}" for side in found.box)
            lines.append(f"  {found.score:.4f}  {found.label}  at {box}")
        if self.features is not None:
            lines.append(f"  {len(self.features)} features, norm {np.linalg.norm(self.features):.4f}")
        if self.patches is not None:
            width, rows, columns = self.patches.shape
            lines.append(f"  {width} features of {rows} x {columns} patches")
        if self.visual_tokens is not None:
            count, width = self.visual_tokens.shape
            lines.append(f"  {count} visual tokens of {width} features")
        if self.mask is not None:
            lines.append(f"  mask {self.mask}")
        if self.missing_pixels:
            lines.append(f"  {self.missing_pixels:,} pixels have no value in the file, and were taken for black")
        return "\n".join(lines)
