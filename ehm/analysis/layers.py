"""Figures for each layer of an encoder: how far attention reaches, how large gradients are (paper, Fig. 2b and 11).

Shapes: B images, N = h * w patches, L tokens, the last N of which are patches, n heads, K layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import Backend, Encoder
from ehm.config import DataConfig, FinetuneConfig
from ehm.data import EvalTransform, open_source
from ehm.data.decoding.channels import load_image
from ehm.data.decoding.depth import ValueRange
from ehm.errors import BrokenImage, ConfigError, DataError
from ehm.storage.checkpoint import find_value_range

__all__ = [
    "GRADIENT_IMAGES",
    "compute_attention_distance",
    "compute_patch_distances",
    "measure_encoder_distances",
    "measure_fine_tuning_gradients",
]

GRADIENT_IMAGES = 128
"""Images that gradients are averaged over."""
_BATCH = 32
"""Images that gradients are computed for at once."""


def compute_patch_distances(grid: tuple[int, int], patch: tuple[float, float] = (1, 1)) -> NDArray[np.float64]:
    """Compute the Euclidean distances between the centres of the patches of ``grid`` = (h, w), row by row: (N, N).

    ``patch`` is the height and width of a patch, in the unit that the distances are to have.
    """
    rows, columns = np.indices(grid).reshape(2, -1)
    down = (rows[:, None] - rows) * patch[0]
    across = (columns[:, None] - columns) * patch[1]
    return np.hypot(down, across)


def compute_attention_distance(attention: NDArray[np.float32], distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the mean attention distance of each head: (B, n, L, L) softmax attention, (N, N) -> (n,).

    The distance of a patch is its distance to all patches, weighted by its attention to them; the result is the mean
    over patches and images (Dosovitskiy et al., 2021, Fig. 7).
    """
    # The tokens before the patches have no position in the image: they are dropped, and the attention to the patches
    # alone is normalised to a sum of 1.
    first = attention.shape[-1] - len(distances)
    shares = attention[:, :, first:, first:].astype(np.float64)
    reach = (shares * distances).sum(axis=-1) / shares.sum(axis=-1)
    mean: NDArray[np.float64] = reach.mean(axis=(0, 2))
    return mean


def measure_encoder_distances(
    encoder: Encoder, files: Sequence[Path], value_range: ValueRange = None
) -> NDArray[np.float64]:
    """Measure the mean attention distance in pixels of every head of every block on ``files``: (K, n).

    ``value_range`` is the one that the encoder was trained with.
    """
    height, width = encoder.image_size
    rows, columns = encoder.grid
    distances = compute_patch_distances(encoder.grid, (height / rows, width / columns))
    transform = EvalTransform.from_spec(encoder.image_size, encoder.inputs)
    pixel_format = encoder.inputs.pixels.with_file_range(value_range)
    total: Any = 0
    for file in files:  # one at a time: the attention of all blocks and heads is large
        pixels = np.array(transform(load_image(file, pixel_format)))[None]
        total = total + np.stack(
            [compute_attention_distance(block, distances) for block in encoder.iterate_attention(pixels)]
        )
    mean: NDArray[np.float64] = total / len(files)
    return mean


def measure_fine_tuning_gradients(
    backend: Backend, init: str, source: str, seed: int
) -> tuple[NDArray[np.float64], int]:
    """Measure the gradients of each layer of the encoder ``init`` before the first step of fine-tuning: (K, 2).

    The first layer is the embedding, then come the blocks; the two figures are those of
    :meth:`ehm.backends.base.Classifier.measure_gradients`. ``seed`` draws the images of ``source``, the same for every
    encoder. Also returns how many images could be read.

    Raises DataError if ``source`` has no labels or no readable image, ConfigError if gradients are not finite.
    """
    data = open_source(DataConfig(source=source, range=find_value_range(init)), "train")
    if data.labels is None or len(data.classes) < 2:
        raise DataError(f"{source}: has no labels; gradients need a folder with a folder for each class, or elpv")
    config = FinetuneConfig.model_validate(
        {"model": {"init": init}, "data": {"source": source}, "optim": {"dtype": "float32"}}
    )
    classifier = backend.create_task_learner(config, len(data.classes))
    transform = EvalTransform.from_spec(classifier.image_size, classifier.inputs)
    one_hot = np.eye(len(data.classes), dtype=np.float32)
    gradients = []
    counts = []
    # Drawn at random, because folders of classes are sorted by class.
    order = np.random.default_rng(seed).permutation(len(data))[:GRADIENT_IMAGES]
    for numbers in np.split(order, range(_BATCH, len(order), _BATCH)):
        images = dict(_read_images(data, numbers, transform))
        if images:
            targets = one_hot[data.labels[list(images)]]
            gradients.append(classifier.measure_gradients(np.stack(list(images.values())), targets))
            counts.append(len(images))
    if not counts:
        raise DataError(f"{source}: none of its images can be read")
    # Each batch counts by its size: the last one may be smaller, and so is one with images that cannot be read.
    shares = np.array(counts) / sum(counts)
    mean = np.tensordot(shares, np.stack(gradients), 1)
    if not np.isfinite(mean).all():
        raise ConfigError(f"{init}: its gradients are not finite; the weights may be damaged")
    return mean, sum(counts)


def _read_images(data: Any, numbers: NDArray[np.int64], transform: EvalTransform) -> Iterator[tuple[int, Any]]:
    """Yield the number and the pixels of each image that can be read."""
    for number in numbers.tolist():
        try:
            yield number, transform(data.load(number))
        except BrokenImage:
            continue
