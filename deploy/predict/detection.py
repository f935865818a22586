"""Objects in images of any size: NumPy alone around a detector's network.

Shapes: an image of H x W pixels, K objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.data.bilinear import find_neighbours
from ehm.deploy.bundle.manifest import Fit, Manifest
from ehm.deploy.bundle.preprocessing import normalise_pixels
from ehm.deploy.predict.comparison import Comparison
from ehm.deploy.predict.handler import CardTexts, Outputs, PredictionOptions, SingleImageHandler
from ehm.deploy.predict.object_matching import compare_objects
from ehm.deploy.predict.prediction import Prediction

if TYPE_CHECKING:
    from ehm.deploy.predict.predictor import Predictor

__all__ = [
    "DetectedObject",
    "DetectionHandler",
    "PlacedImage",
    "collect_objects",
    "paste_mask",
    "place_image",
    "resize_bilinear",
]

Size = tuple[int, int]


@dataclass(frozen=True)
class DetectedObject:
    """An object: its class, a score in [0, 1], ``box`` (left, top, right, bottom) in pixels, and ``mask`` (H, W)."""

    label: str
    score: float
    box: tuple[float, float, float, float]
    mask: NDArray[np.bool_] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values; the mask as COCO's uncompressed run-length code."""
        values: dict[str, Any] = {"label": self.label, "score": self.score, "box": list(self.box)}
        if self.mask is not None:
            values["mask"] = _encode_runs(self.mask)
        return values


@dataclass(frozen=True)
class PlacedImage:
    """An image in the upper left of ``pixels`` (h, w, 3) float32, which the network takes.

    ``inside`` is the size (height, width) that it has there, ``own`` the size that it had before.
    """

    pixels: NDArray[np.float32]
    inside: Size
    own: Size


class DetectionHandler(SingleImageHandler):
    """A bundle that finds objects in one image at a time."""

    card = CardTexts("Object detector", "object-detection")
    takes_batches = False
    tensor_refusal = "finds objects: send an image file to /v1/detect"
    agreement = "{:.1%} of the objects in common"
    missing = "boxes"

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        assert manifest.fit is not None  # the manifest was checked
        self.fit = manifest.fit

    def place(self, image: Image.Image) -> tuple[PlacedImage, NDArray[np.float32]]:
        """Return where an RGB image of any size lies in the network's input, and that input (1, 3, H, W)."""
        preprocessing = self.manifest.preprocessing
        blank = np.asarray(preprocessing.mean, np.float32) * 255  # normalising makes it 0
        placed = place_image(np.asarray(image), self.fit, preprocessing.image_size, blank)
        return placed, normalise_pixels(placed.pixels, preprocessing)[np.newaxis]

    def prepare_sample(self, predictor: Predictor, image: Image.Image) -> NDArray[Any]:
        """Return an image fitted into the network's input (3, H, W)."""
        _, inputs = self.place(image)
        return inputs[0]

    @property
    def measured_outputs(self) -> list[str]:
        """All outputs: objects are compared by their boxes, labels, scores and masks."""
        return self.manifest.output_names

    @property
    def compared(self) -> str:
        """A noun for what the cosines are between: boxes, scores and masks of the objects that both find."""
        return "objects"

    def compare(self, expected: Outputs, found: Outputs) -> Comparison:
        """Compare the objects of one image; see `Handler.compare`."""
        return compare_objects(expected, found, self.fit.threshold)

    def find_objects(
        self, outputs: Outputs, placed: PlacedImage, threshold: float | None = None
    ) -> list[DetectedObject]:
        """Return the objects among the outputs, the likeliest first, by default those above the bundle's threshold."""
        if threshold is None:
            threshold = self.fit.threshold
        return collect_objects(outputs, placed, threshold, self.manifest.labels)

    def predict_image(
        self, predictor: Predictor, file: Path, image: Image.Image, options: PredictionOptions
    ) -> Prediction:
        """Return the objects of an image as a prediction."""
        placed, inputs = self.place(image)
        return Prediction(str(file), objects=tuple(self.find_objects(predictor.run(inputs), placed)))

    def describe_input(self) -> str:
        """Say how an image is fitted into the network's input, and which objects count."""
        height, width = self.manifest.preprocessing.image_size
        return (
            f"In RGB: resize (bilinear, proportions kept) until the shorter side has {self.fit.shorter} pixels or the "
            f"longer one {self.fit.longer}, at most {height} x {width}; normalise "
            f"({self._describe_normalisation()}); put it into the upper left of zeros of that size. "
            f"Objects are those of a score above {self.fit.threshold:g}; masks lie inside their boxes."
        )

    def write_example_code(self) -> list[str]:
        """Return nothing: fitting an image and pasting masks takes more lines than a card has room for."""
        return []


def place_image(image: NDArray[np.uint8], rule: Fit, image_size: Size, fill: NDArray[np.float32]) -> PlacedImage:
    """Resize an image (h, w, 3) as ``rule`` says, into ``image_size``; the rest of that becomes ``fill`` (3,)."""
    height, width = image.shape[:2]
    scale = min(rule.shorter / min(height, width), rule.longer / max(height, width))
    # a rule may ask for more than the network's one size has room for
    scale = min(scale, image_size[0] / height, image_size[1] / width)
    inside = (max(1, int(height * scale)), max(1, int(width * scale)))
    pixels = np.broadcast_to(fill, (*image_size, 3)).astype(np.float32)
    pixels[: inside[0], : inside[1]] = resize_bilinear(image.astype(np.float32), inside)
    return PlacedImage(pixels, inside, (height, width))


def collect_objects(
    outputs: Outputs, placed: PlacedImage, threshold: float, labels: tuple[str, ...]
) -> list[DetectedObject]:
    """Return the objects of a score above ``threshold`` in the image's own pixels, the likeliest first."""
    height, width = placed.own
    across = width / placed.inside[1]
    down = height / placed.inside[0]
    boxes = outputs["boxes"] * np.array([across, down, across, down], np.float32)
    boxes = boxes.clip(0, np.array([width, height, width, height], np.float32))
    masks = outputs.get("masks")
    objects = []
    for index in np.flatnonzero(outputs["scores"] > threshold):
        box = boxes[index]
        left, top, right, bottom = box.tolist()
        if right <= left or bottom <= top:  # it lies beside the image, in the padding
            continue
        label = labels[int(outputs["labels"][index])]
        mask = None if masks is None else paste_mask(masks[index], box, placed.own)
        objects.append(DetectedObject(label, float(outputs["scores"][index]), (left, top, right, bottom), mask))
    return objects


def paste_mask(mask: NDArray[np.float32], box: NDArray[np.float32], size: Size) -> NDArray[np.bool_]:
    """Enlarge probabilities (28, 28) inside ``box`` to an image of ``size``: True if they exceed a half.

    The arithmetic is torchvision's (``paste_masks_in_image``), which pads the mask by a pixel and rounds the box.
    """
    side = mask.shape[0]
    padded = np.pad(mask, 1)
    # the box grows with the padding, around the same centre
    centre = (box[:2] + box[2:]) / 2
    half = (box[2:] - box[:2]) / 2 * ((side + 2) / side)
    left, top = (centre - half).astype(np.int64).tolist()
    right, bottom = (centre + half).astype(np.int64).tolist()
    width = max(right - left + 1, 1)
    height = max(bottom - top + 1, 1)
    inside = resize_bilinear(padded[..., np.newaxis], (height, width))[..., 0] > 0.5
    # of the grown box, only what lies inside the image is copied
    rows = slice(max(top, 0), min(bottom + 1, size[0]))
    columns = slice(max(left, 0), min(right + 1, size[1]))
    whole = np.zeros(size, bool)
    whole[rows, columns] = inside[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return whole


def resize_bilinear(values: NDArray[np.float32], size: Size) -> NDArray[np.float32]:
    """Resize (h, w, D) to (height, width, D), without smoothing first.

    That is torch's ``interpolate`` with ``align_corners`` false.
    """
    for axis, length in enumerate(size):
        before, after, share = find_neighbours(values.shape[axis], length)
        share = share.reshape(-1, *[1] * (values.ndim - 1 - axis))
        values = values.take(before, axis) * (1 - share) + values.take(after, axis) * share
    return values


def _encode_runs(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return COCO's uncompressed run-length code: counts down the columns, which begin with a run of zeros."""
    flat = np.concatenate([[False], mask.T.ravel()])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], ends, [mask.size]]))
    return {"size": list(mask.shape), "counts": counts.tolist()}


HANDLER = DetectionHandler
"""The handler of the task that this file is named after; ``create_handler`` finds it by that name."""
