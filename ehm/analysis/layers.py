"""Figures for each layer of several encoders: how far attention reaches, how large gradients are (paper, Fig. 2b, 11).

Shapes: B images, N = h * w patches, L = 1 + N tokens, n heads, K layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import Backend, Encoder
from ehm.config import DataConfig, FinetuneConfig, ModelSource
from ehm.data import EvalTransform, decode, open_source
from ehm.data.decoding.depth import ValueRange
from ehm.errors import BrokenImage, ConfigError, DataError
from ehm.storage.checkpoint import find_value_range

__all__ = ["GRADIENT_IMAGES", "attention_distance", "encoder_distances", "fine_tuning_gradients", "patch_distances"]

GRADIENT_IMAGES = 128
"""Images that gradients are averaged over, in batches of 32."""
_BATCH = 32


def patch_distances(grid: tuple[int, int], patch: tuple[float, float] = (1, 1)) -> NDArray[np.float64]:
    """Euclidean distances between the centres of the patches of ``grid`` = (h, w), row by row: (N, N).

    In the unit of ``patch``, the height and width of one.
    """
    rows, columns = (axis.ravel() for axis in np.mgrid[: grid[0], : grid[1]])
    return np.hypot((rows[:, None] - rows) * patch[0], (columns[:, None] - columns) * patch[1])


def attention_distance(attention: NDArray[np.float32], distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean attention distance of each head: (B, n, L, L) softmax attention, (N, N) -> (n,).

    Of every patch, the distance to all patches weighted by its attention to them, which is brought to a sum of 1
    without the class token; mean over patches and images (Dosovitskiy et al., 2021, Fig. 7).
    """
    shares = attention[:, :, 1:, 1:].astype(np.float64)
    reach = (shares * distances).sum(axis=-1) / shares.sum(axis=-1)
    mean: NDArray[np.float64] = reach.mean(axis=(0, 2))
    return mean


def encoder_distances(encoder: Encoder, files: Sequence[Path], value_range: ValueRange = None) -> NDArray[np.float64]:
    """Mean attention distance in pixels of every head of every block on ``files``: (K, n).

    ``value_range`` is the one that the encoder was trained with.
    """
    (height, width), (down, across) = encoder.image_size, encoder.grid
    distances = patch_distances(encoder.grid, (height / down, width / across))
    transform = EvalTransform.from_spec(encoder.image_size, encoder.inputs)
    total: Any = 0
    for file in files:  # one at a time: the attention of all blocks and heads is large
        pixels = np.array(transform(decode(file, value_range=value_range)))[None]
        total = total + np.stack([attention_distance(block, distances) for block in encoder.iterate_attention(pixels)])
    mean: NDArray[np.float64] = total / len(files)
    return mean


def fine_tuning_gradients(backend: Backend, init: str, source: str, seed: int) -> tuple[NDArray[np.float64], int]:
    """Gradients of each layer of the encoder ``init`` before the first step of fine-tuning on ``source``: (K, 2).

    The embedding's first, then the blocks', each as :meth:`ehm.backends.base.Classifier.measure_gradients` says; mean
    over batches of the same images for every encoder. The second value is how many images these were.
    """
    data = open_source(DataConfig(source=source, range=find_value_range(init)), "train")
    if data.labels is None or len(data.classes) < 2:
        raise DataError(f"{source}: has no labels; gradients need a folder with a folder for each class, or elpv")
    config = FinetuneConfig(model=ModelSource(init=init), data=DataConfig(source=source))
    classifier = backend.create_classifier(config, len(data.classes))
    transform = EvalTransform.from_spec(classifier.image_size, classifier.inputs)
    one_of = np.eye(len(data.classes), dtype=np.float32)
    found, images = [], 0
    order = np.random.default_rng(seed).permutation(len(data))[:GRADIENT_IMAGES]
    for numbers in np.split(order, range(_BATCH, len(order), _BATCH)):
        read = dict(_readable(data, numbers, transform))
        if read:
            targets = one_of[data.labels[list(read)]]
            found.append((len(read), classifier.measure_gradients(np.stack(list(read.values())), targets)))
            images += len(read)
    if not images:
        raise DataError(f"{source}: none of its images can be read")
    shares = [count / images for count, _ in found]
    mean = np.tensordot(shares, np.stack([figures for _, figures in found]), 1)
    if not np.isfinite(mean).all():
        raise ConfigError(f"{init}: its gradients are not finite; the weights may be damaged")
    return mean, images


def _readable(data: Any, numbers: NDArray[np.int64], transform: EvalTransform) -> Iterator[tuple[int, Any]]:
    for number in numbers.tolist():
        try:
            yield number, transform(data.load(number))
        except BrokenImage:
            continue
