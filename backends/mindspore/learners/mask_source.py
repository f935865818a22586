"""Attention and features that masks are made of: passes over the images of a batch, by the model of ``mask.source``.

Shapes: B images of H x W pixels, b of a piece, N output tokens of the encoder, U mask units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from mindspore import Tensor
from numpy.typing import NDArray

from ehm.backends.common import split_batch
from ehm.backends.mindspore.engine.graphs import compile_graph
from ehm.backends.mindspore.engine.tensors import Pixels
from ehm.backends.mindspore.models.blocks import cosine_similarity
from ehm.config import TrainConfig

__all__ = ["MaskSource", "MindsporeBatch"]

_PIECE = 64
"""Images whose similarity is computed and sent to the host together."""


class MindsporeBatch:
    """Implements :class:`ehm.backends.base.PreparedBatch`."""

    def __init__(self, source: MaskSource, images: NDArray[np.uint8]) -> None:
        self.images = images
        self._source = source

    def compute_similarity(self) -> Iterable[NDArray[np.float32]]:
        """See :meth:`ehm.backends.base.PreparedBatch.compute_similarity`. All of it is on its way when this returns."""
        return self._source.compute_similarity(self.images)

    def compute_saliency(self) -> Iterable[NDArray[np.float32]]:
        """See :meth:`ehm.backends.base.PreparedBatch.compute_saliency`. All of it is on its way when this returns."""
        return self._source.compute_saliency(self.images)


class MaskSource:
    """The ``model`` that masks go by, and its passes over the images of a batch, which ``pixels`` normalises."""

    def __init__(self, config: TrainConfig, model: Any, pixels: Pixels) -> None:
        self._config = config
        self._model = model
        blocks = config.mask.blocks
        pool = _build_pooling(config.spec.grid, config.units)

        def compute_from_attention(images: Tensor) -> Tensor:
            similarity = model.compute_similarity(model.embed(pixels(images)), blocks)
            return pool(pool(similarity).swapaxes(1, 2))

        def compute_from_features(images: Tensor) -> Tensor:
            features = model.compute_features(model.embed(pixels(images)), blocks)
            return cosine_similarity(pool(features.swapaxes(1, 2)).swapaxes(1, 2))

        def compute_saliency(images: Tensor) -> Tensor:
            return pool(model.compute_saliency(model.embed(pixels(images))))

        function = compute_from_attention if config.mask.similarity == "attention" else compute_from_features
        self._similarity = compile_graph(function)
        self._saliency = compile_graph(compute_saliency)

    def compute_similarity(self, images: NDArray[np.uint8]) -> Iterable[NDArray[np.float32]]:
        """Compute the similarities (b, U, U) of the mask units of ``images``, in pieces."""
        return self._apply_to_pieces(images, self._similarity)

    def compute_saliency(self, images: NDArray[np.uint8]) -> Iterable[NDArray[np.float32]]:
        """Compute the saliencies (b, U) of the mask units of ``images``, in pieces."""
        return self._apply_to_pieces(images, self._saliency)

    def _apply_to_pieces(
        self, images: NDArray[np.uint8], function: Callable[[Tensor], Tensor]
    ) -> Iterable[NDArray[np.float32]]:
        """Apply ``function`` to ``images`` in evaluation mode, piece by piece."""
        self._model.set_train(False)
        pieces = []
        for rows in split_batch(len(images), self._config.optim.accumulate):
            for start in range(rows.start, rows.stop, _PIECE):
                stop = min(start + _PIECE, rows.stop)
                pieces.append(function(Tensor(images[start:stop])))
        return (piece.asnumpy() for piece in pieces)


def _build_pooling(grid: tuple[int, int], units: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """Return a function that averages over the tokens of each mask unit, along the last axis: (..., N) -> (..., U)."""
    height, width = grid
    down, across = units

    def pool(values: Tensor) -> Tensor:
        if units == grid:
            return values
        cells = values.reshape((*values.shape[:-1], down, height // down, across, width // across))
        return cells.mean(axis=(-3, -1)).reshape((*values.shape[:-1], down * across))

    return pool
