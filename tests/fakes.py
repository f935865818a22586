"""Stand-ins for what needs a framework: the same protocols in plain NumPy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ehm.config.inputs import InputSpec


class FakeEncoder:
    """An :class:`ehm.backends.base.Encoder` to whom patches of like colour and near place are alike."""

    has_class_token = True

    def __init__(self, image_size: tuple[int, int] = (96, 96), patch_size: int = 8) -> None:
        self.image_size = image_size
        self.inputs = InputSpec()
        self.notes: tuple[str, ...] = ()
        self.grid = (image_size[0] // patch_size, image_size[1] // patch_size)
        self.patch_size = patch_size

    def compute_features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._colours(images).mean(1)

    def compute_similarity(self, images: NDArray[np.uint8], blocks: int) -> NDArray[np.float32]:
        colours = self._colours(images)
        places = np.stack(np.meshgrid(*(np.arange(side) / side for side in self.grid), indexing="ij"), -1).reshape(
            -1, 2
        )
        unlike = ((colours[:, :, None] - colours[:, None]) ** 2).sum(-1) * 10 * blocks
        apart = ((places[:, None] - places[None]) ** 2).sum(-1) * 4
        return np.exp(-unlike - apart).astype(np.float32)

    def compute_tokens(self, images: NDArray[np.uint8], blocks: int) -> NDArray[np.float32]:
        return self._colours(images)

    def compute_attention(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        similarity = self.compute_similarity(images, 6)
        tokens = np.pad(similarity, ((0, 0), (1, 0), (1, 0)), constant_values=0.1)
        return np.repeat((tokens / tokens.sum(-1, keepdims=True))[:, None], 2, 1)

    def iterate_attention(self, images: NDArray[np.uint8]) -> Iterator[NDArray[np.float32]]:
        """Two blocks: one that looks everywhere alike, and one that looks as ``attention`` says."""
        last = self.compute_attention(images)
        yield np.full_like(last, 1 / last.shape[-1])
        yield last

    def _colours(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Mean colour of each patch in [0, 1]: (B, N, 3)."""
        batch, side = len(images), self.patch_size
        cells = images.reshape(batch, self.grid[0], side, self.grid[1], side, 3).astype(np.float32) / 255
        return cells.mean((2, 4)).reshape(batch, -1, 3)
