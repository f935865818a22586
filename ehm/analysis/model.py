"""The model that ``ehm inspect`` draws: an encoder, and the masking that it was trained with, or could be.

Shapes: B images, H x W pixels, N = h * w patches, U mask units.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ehm import masking
from ehm.backends.base import Encoder
from ehm.config import MaskConfig
from ehm.data.decoding.depth import ValueRange
from ehm.errors import ConfigError
from ehm.masking import Hierarchy

__all__ = ["InspectedModel", "PreparedImage"]


@dataclass(frozen=True)
class InspectedModel:
    """An encoder, and the masking and its settings that it was trained with, or could be.

    ``origin`` describes the encoder for messages. A mask unit is ``side`` x ``side`` patches. ``value_range`` is the
    range of pixel values in its training, for images of more than 8 bits.
    """

    encoder: Encoder
    origin: str
    masking: str
    mask: MaskConfig
    side: int = 1
    value_range: ValueRange = None

    @property
    def units(self) -> tuple[int, int]:
        """Mask units down and across, U in all."""
        return self.encoder.grid[0] // self.side, self.encoder.grid[1] // self.side

    def compute_similarity(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the similarity of each pair of units of (B, H, W, 3) images, by ``mask.similarity``: (B, U, U)."""
        if self.mask.similarity == "cosine":
            tokens = self.encoder.compute_tokens(images, self.mask.blocks)
            return masking.cosine_similarity(self._pool_patches(tokens.swapaxes(1, 2)).swapaxes(1, 2))
        rows = self._pool_patches(self.encoder.compute_similarity(images, self.mask.blocks))
        return self._pool_patches(rows.swapaxes(1, 2))

    def compute_saliency(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the mean attention of the class token to each unit of (B, H, W, 3) images: (B, U).

        Raises ConfigError if the encoder has no class token.
        """
        if not self.encoder.has_class_token:
            raise ConfigError(f"{self.origin}: has no class token, whose attention masking {self.masking} goes by")
        attention = self.encoder.compute_attention(images)
        # other tokens, such as registers, may stand between the class token and the patches
        first = attention.shape[-1] - self.encoder.grid[0] * self.encoder.grid[1]
        return self._pool_patches(attention[:, :, 0, first:].mean(1))

    def build_hierarchy(self, images: NDArray[np.uint8]) -> Hierarchy:
        """Build the trees of (B, H, W, 3) images."""
        similarity = self.compute_similarity(images)
        if self.mask.balance == "sinkhorn":
            similarity = masking.balance(similarity)
        return masking.build_hierarchy(similarity)

    def describe(self) -> str:
        """Describe the model and its input, for the foot of a page."""
        height, width = self.encoder.image_size
        rows, columns = self.encoder.grid
        units = f", masked in units of {self.side} x {self.side}" if self.side > 1 else ""
        return (
            f"Model: {self.origin}. It sees the middle of each image at {height} x {width} pixels, "
            f"as {rows} x {columns} patches{units}."
        )

    def describe_similarity(self) -> str:
        """Describe the similarity that hierarchies are built from, for the foot of a page."""
        treatment = "balanced (Sinkhorn)" if self.mask.balance == "sinkhorn" else "raw"
        measure = "mean attention of" if self.mask.similarity == "attention" else "cosine of the tokens behind"
        return f"Similarity: {measure} the first blocks (at most {self.mask.blocks}), {treatment}."

    def _pool_patches(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the mean over the patches of each unit, along the last axis: (..., N) -> (..., U)."""
        rows, columns = self.units
        cells = values.reshape(*values.shape[:-1], rows, self.side, columns, self.side)
        pooled: NDArray[np.float32] = cells.mean((-3, -1))
        return pooled.reshape(*values.shape[:-1], rows * columns)


class PreparedImage:
    """One image of a page, with the methods that a masker calls; several masks of it share one forward pass."""

    def __init__(self, model: InspectedModel, image: NDArray[np.uint8]) -> None:
        self.images = image[None]
        self._model = model

    def compute_similarity(self) -> list[NDArray[np.float32]]:
        """See :meth:`ehm.backends.base.PreparedBatch.compute_similarity`."""
        return [self._similarity]

    def compute_saliency(self) -> list[NDArray[np.float32]]:
        """See :meth:`ehm.backends.base.PreparedBatch.compute_saliency`."""
        return [self._saliency]

    @cached_property
    def _similarity(self) -> NDArray[np.float32]:
        return self._model.compute_similarity(self.images)

    @cached_property
    def _saliency(self) -> NDArray[np.float32]:
        return self._model.compute_saliency(self.images)
