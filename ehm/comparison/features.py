"""Features of the labelled images, which an encoder computes once and a file keeps from one command to the next.

n images, D features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from ehm.backends.base import Encoder
from ehm.comparison.images import LabelledImages, Split
from ehm.data import EvalTransform, Loader, Source
from ehm.data.sources.identity import identify_source
from ehm.data.subset import Subset
from ehm.storage.writing import replace_file

__all__ = [
    "ImageFeatures",
    "extract_features",
    "has_features",
    "identify_images",
    "load_features",
    "make_key",
    "save_features",
]

_IMAGES_AT_ONCE = 128
_KEY_DIGITS = 16
"""Hexadecimal digits of a key: enough that two of a comparison's keys never meet."""


@dataclass(frozen=True)
class ImageFeatures:
    """Features (n, D) of labelled images, and a mask (n,) of the images that could be read."""

    values: NDArray[np.float32]
    is_readable: NDArray[np.bool_]

    def select_readable(self, split: Split) -> Split:
        """Return ``split`` without the images that cannot be read."""
        return Split(split.train[self.is_readable[split.train]], split.test[self.is_readable[split.test]])


def extract_features(
    encoder: Encoder, images: LabelledImages, workers: int, show: Callable[[int], object] | None = None
) -> ImageFeatures:
    """Return the features of all ``images``, which are scaled and normalised as in the training of the encoder.

    ``show`` is called after every batch with the number of images that are done. The features of an image that cannot
    be read are zeros.
    """
    values: NDArray[np.float32] | None = None
    is_readable = np.zeros(len(images.labels), bool)
    first = 0
    done = 0
    for part in images.parts:
        row_of = {index: first + row for row, index in enumerate(part.indices.tolist())}
        with _make_loader(part, encoder, workers) as loader:
            for batch in loader.batches(0, loader.steps_per_epoch):
                features = encoder.compute_features(batch.images)
                if values is None:
                    values = np.zeros((len(images.labels), features.shape[1]), np.float32)
                # by the batch's indices, because the loader reads another image in place of an unreadable one
                rows = [row_of[index] for index in batch.indices.tolist()]
                values[rows] = features
                is_readable[rows] = True
                done += len(rows)
                if show is not None:
                    show(done)
        first += len(part)
    assert values is not None  # there are images
    return ImageFeatures(values, is_readable)


def _make_loader(part: Subset[Source], encoder: Encoder, workers: int) -> Loader:
    """Return a loader of every image of ``part`` once, in order."""
    return Loader(
        part.source,
        EvalTransform.from_spec(encoder.image_size, encoder.inputs),
        batch_size=_IMAGES_AT_ONCE,
        seed=0,  # only the stand-ins for unreadable images are drawn
        shuffle=False,
        drop_last=False,
        workers=workers,
        subset=part.selected,
    )


def identify_images(images: LabelledImages, value_range: tuple[float, float] | None, threads: int) -> dict[str, Any]:
    """Return everything, besides the encoder, that the features of ``images`` depend on, as plain JSON."""
    identities = []
    for part in images.parts:
        chosen = hashlib.sha256(part.indices.astype("<i8").tobytes()).hexdigest()
        identities.append({**asdict(identify_source(part.source, threads)), "chosen": chosen})
    return {"parts": identities, "range": value_range}


def make_key(facts: Mapping[str, Any]) -> str:
    """Return a short hash of ``facts``, plain JSON: the same for equal facts, in whatever order their keys are."""
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS]


def has_features(path: Path) -> bool:
    """Return True if :func:`load_features` would load features from ``path``, without reading them."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {"features", "is_readable"} <= set(file.keys())
    except (OSError, SafetensorError):
        return False


def load_features(path: Path) -> ImageFeatures | None:
    """Load the features that :func:`save_features` wrote; None if the file is missing or damaged."""
    try:
        arrays = load_file(path)
        return ImageFeatures(arrays["features"], arrays["is_readable"])
    except (OSError, SafetensorError, KeyError):
        return None  # they are computed again


def save_features(path: Path, features: ImageFeatures) -> None:
    """Write ``features`` to ``path``, complete or not at all."""
    with replace_file(path) as temporary:
        save_file({"features": features.values, "is_readable": features.is_readable}, temporary)
