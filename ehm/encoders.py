"""The encoders that have a name, as numbers: no framework, so that every backend builds the same ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["VIT_PRESETS", "VitSpec", "sincos_positions"]


@dataclass(frozen=True)
class VitSpec:
    """A Vision Transformer (Dosovitskiy et al., 2021) over ``image_size`` = (height, width) pixels."""

    image_size: tuple[int, int]
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def patches(self) -> int:
        """Number of patches, N."""
        return self.grid[0] * self.grid[1]


VIT_PRESETS: dict[str, dict[str, int]] = {
    "vit_tiny": {"width": 192, "depth": 12, "heads": 3},
    "vit_small": {"width": 384, "depth": 12, "heads": 6},
    "vit_base": {"width": 768, "depth": 12, "heads": 12},
    "vit_large": {"width": 1024, "depth": 24, "heads": 16},
    "vit_huge": {"width": 1280, "depth": 32, "heads": 16},
}
"""Width, depth and heads of the published ViTs: Ti and S from DeiT (Touvron et al., 2021), B, L and H from ViT."""


def sincos_positions(width: int, grid: tuple[int, int]) -> NDArray[np.float32]:
    """Sine-cosine positions of a grid, zero for the class token first: (1, 1 + N, width).

    The first half of the features encodes the column, the second the row, each as sines then cosines (MAE's layout).
    """
    frequencies = 1.0 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4))
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    halves = []
    for positions in (columns, rows):
        angles = np.outer(positions.ravel().astype(np.float64), frequencies)
        halves += [np.sin(angles), np.cos(angles)]
    table = np.concatenate(halves, axis=1)
    return np.concatenate([np.zeros((1, width)), table])[None].astype(np.float32)
