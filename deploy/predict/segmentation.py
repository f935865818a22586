"""Masks of images of any size: windows of the image, their scores averaged, and a PNG. NumPy and Pillow alone.

Shapes: an image of H x W pixels, h x w of them once resized, B windows of a batch, C classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.data.bilinear import enlarge_argmax
from ehm.data.segmentation import place_windows, resize_to_scale
from ehm.deploy.bundle.manifest import Manifest
from ehm.deploy.bundle.preprocessing import normalise_pixels
from ehm.deploy.predict.comparison import Comparison, compute_cosines
from ehm.deploy.predict.handler import CardTexts, NamedImage, Outputs, PredictionOptions, SingleImageHandler
from ehm.deploy.predict.prediction import Prediction
from ehm.storage.reading import parse_json, read_text
from ehm.storage.writing import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ehm.deploy.predict.predictor import Predictor

__all__ = ["WINDOW_BATCH", "Mosaic", "SegmentationHandler", "make_label_image", "write_mask"]

Size = tuple[int, int]
WINDOW_BATCH = 4
"""Windows that are run at once."""


class Mosaic:
    """The windows of a resized, normalised image (3, h, w), and the mean of their scores, which overlap.

    They are of the size ``window`` and ``stride`` apart, as ``ehm evaluate`` slides.
    """

    def __init__(self, pixels: NDArray[np.float32], window: Size, stride: Size) -> None:
        height, width = pixels.shape[1:]
        self._pixels = pixels
        self._window = window
        # an image smaller than a window has one, which is padded
        self._corners = place_windows((max(height, window[0]), max(width, window[1])), window, stride)
        self._counts = np.zeros((height, width), np.float32)
        self._total: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self._corners)

    @property
    def pixel_count(self) -> int:
        """The number of pixels of the resized image; as many scores of each class are kept."""
        return self._counts.size

    def inputs(self, start: int, count: int) -> NDArray[np.float32]:
        """Return the windows (B, 3, *window) from number ``start``, ``count`` or what is left of them."""
        # windows are padded one by one: a line of pixels, padded as a whole, would grow to a window's height
        corners = self._corners[start : start + count]
        return np.stack([self._pad_window(corner) for corner in corners])

    def add_scores(self, start: int, scores: NDArray[np.float32]) -> None:
        """Add the scores (B, C, *window) of the windows from number ``start``."""
        height, width = self._window
        if self._total is None:
            # the number of classes is known with the first scores only
            self._total = np.zeros((scores.shape[1], *self._counts.shape), np.float32)
        for (y, x), values in zip(self._corners[start:], scores, strict=False):
            inside = self._total[:, y : y + height, x : x + width]
            # a window may reach beyond the image, into the padding
            inside += values[:, : inside.shape[1], : inside.shape[2]]
            self._counts[y : y + height, x : x + width] += 1

    def make_labels(self, size: Size) -> NDArray[np.uint8]:
        """Return the class numbers of ``size`` = (H, W), once all windows have their scores."""
        assert self._total is not None
        return enlarge_argmax(self._total / self._counts, size)

    def _pad_window(self, corner: Size) -> NDArray[np.float32]:
        """Return the window (3, *window) at ``corner`` (y, x), with zeros on the right and below the image."""
        y, x = corner
        height, width = self._window
        inside = self._pixels[:, y : y + height, x : x + width]
        return np.pad(inside, ((0, 0), (0, height - inside.shape[1]), (0, width - inside.shape[2])))


class SegmentationHandler(SingleImageHandler):
    """A bundle that gives the scores of every class for each pixel of a window."""

    card = CardTexts("Image segmenter", "image-segmentation", "mean_iou")
    agreement = "the same class for {:.1%} of the pixels"
    missing = "masks"

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        assert manifest.windows is not None  # the manifest was checked
        self.windows = manifest.windows

    def cut_windows(self, image: Image.Image) -> Mosaic:
        """Return an RGB image of any size as the windows that the network takes."""
        preprocessing = self.manifest.preprocessing
        pixels = normalise_pixels(resize_to_scale(image, self.windows.scale), preprocessing)
        return Mosaic(pixels, preprocessing.image_size, self.windows.stride)

    def prepare_sample(self, predictor: Predictor, image: Image.Image) -> NDArray[Any]:
        """Return the window in the middle of an image."""
        mosaic = self.cut_windows(image)
        return mosaic.inputs(len(mosaic) // 2, 1)[0]

    def compare(self, expected: Outputs, found: Outputs) -> Comparison:
        """Compare the scores of all pixels, and the class of each; see `Handler.compare`."""
        same = expected["scores"].argmax(axis=1) == found["scores"].argmax(axis=1)
        return Comparison(compute_cosines(expected["scores"], found["scores"]), same.mean(axis=(1, 2)))

    def segment(self, predictor: Predictor, image: Image.Image) -> NDArray[np.uint8]:
        """Return the class numbers (H, W) of an RGB image's pixels."""
        mosaic = self.cut_windows(image)
        for start in range(0, len(mosaic), WINDOW_BATCH):
            outputs = predictor.run(mosaic.inputs(start, WINDOW_BATCH), ["scores"])
            mosaic.add_scores(start, outputs["scores"])
        return mosaic.make_labels((image.height, image.width))

    def measure_shares(self, labels: NDArray[np.uint8]) -> list[tuple[str, float]]:
        """Return the classes that occur among ``labels`` with their shares of the pixels, the largest first."""
        shares = np.bincount(labels.ravel(), minlength=len(self.manifest.labels)) / labels.size
        classes = []
        for index in np.argsort(-shares, kind="stable"):
            if shares[index] > 0:
                classes.append((self.manifest.labels[index], float(shares[index])))
        return classes

    def predict_images(
        self, predictor: Predictor, images: Sequence[NamedImage], options: PredictionOptions
    ) -> Iterator[Prediction]:
        """Yield the prediction of each image; see `Handler.predict_images`. Masks of an earlier call are removed."""
        if options.out is not None:
            _remove_masks(options.out)
        yield from super().predict_images(predictor, images, options)

    def predict_image(
        self, predictor: Predictor, file: Path, image: Image.Image, options: PredictionOptions
    ) -> Prediction:
        """Return the shares of the classes, and the mask: in memory, or as a file if there is a folder for it."""
        labels = self.segment(predictor, image)
        classes = tuple(self.measure_shares(labels)[: options.top])
        if options.out is None:
            return Prediction(str(file), classes, labels=labels)
        mask = write_mask(labels, options.out / "masks", file.stem, options.taken_names)
        # many masks need not fit into memory: one that was written is not kept
        return Prediction(str(file), classes, labels=labels[:0], mask=mask)


def write_mask(labels: NDArray[np.uint8], folder: Path, name: str, taken: set[str]) -> str:
    """Write ``folder/NAME.png``, or NAME-2.png ... if the name is ``taken``, and return its path."""
    unique = name
    number = 1
    while unique in taken:
        number += 1
        unique = f"{name}-{number}"
    taken.add(unique)
    path = folder / f"{unique}.png"
    with replace_file(path) as temporary:
        make_label_image(labels).save(temporary, format="PNG")
    return str(path)


def make_label_image(labels: NDArray[np.uint8]) -> Image.Image:
    """Return class numbers (H, W) as an image whose palette is that of PASCAL VOC's masks."""
    image = Image.fromarray(labels)
    image.putpalette(_make_palette())
    return image


def _make_palette() -> list[int]:
    """Return red, green and blue of 256 classes: the bits of a class number are spread over the three."""
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            # every third bit belongs to a channel, and the lowest ones change its colour the most
            value = numbers >> (channel + 3 * bit) & 1
            colours[:, channel] |= (value << (7 - bit)).astype(np.uint8)
    values: list[int] = colours.ravel().tolist()
    return values


def _remove_masks(out: Path) -> None:
    """Remove the masks that the predictions of an earlier call in ``out`` name, and no other file."""
    predictions = out / "predictions.jsonl"
    if not predictions.is_file():
        return
    for line in read_text(predictions).splitlines():
        entry = parse_json(line, str(predictions))
        mask = entry.get("mask") if isinstance(entry, dict) else None
        if mask is not None and Path(mask).parent == out / "masks":
            Path(mask).unlink(missing_ok=True)


HANDLER = SegmentationHandler
"""The handler of the task that this file is named after; ``create_handler`` finds it by that name."""
