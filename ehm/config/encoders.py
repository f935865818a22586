"""The encoders that have a name, as numbers: no framework, so that every backend builds the same ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "LAYER_SCALE",
    "PRESETS",
    "SWIN_PRESETS",
    "VIT_PRESETS",
    "EncoderSpec",
    "SwinSpec",
    "VitSpec",
    "relative_index",
    "sincos_positions",
]


class _Grid(ABC):
    """The output tokens of an encoder, ``stride`` pixels apart."""

    image_size: tuple[int, int]

    @property
    @abstractmethod
    def stride(self) -> int:
        """Pixels from one output token to the next."""

    @property
    def grid(self) -> tuple[int, int]:
        """Output tokens down and across."""
        return self.image_size[0] // self.stride, self.image_size[1] // self.stride

    @property
    def patches(self) -> int:
        """Number of output tokens, N."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class VitSpec(_Grid):
    """A Vision Transformer (Dosovitskiy et al., 2021) over ``image_size`` = (height, width) pixels.

    ``relative`` is the form of BEiT and of SimMIM's ViT: attention has a bias for every relative position and keys have
    none, no positions are added to the tokens, and each branch is scaled by a factor for every feature (layer scale).
    """

    image_size: tuple[int, int]
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    relative: bool = False

    @property
    def stride(self) -> int:
        """Pixels from one output token to the next."""
        return self.patch_size

    @property
    def features(self) -> int:
        """Width of an output token, D."""
        return self.width

    @property
    def blocks(self) -> int:
        """Number of Transformer blocks."""
        return self.depth


@dataclass(frozen=True)
class SwinSpec(_Grid):
    """A Swin Transformer (Liu et al., 2021): stages of blocks whose attention stays within windows of tokens.

    The tokens of the first stage are patches; each further stage merges 2 x 2 tokens and doubles their ``width``.
    ``window`` is the side of a window in tokens; every second block has its windows moved by half of it.
    """

    image_size: tuple[int, int]
    patch_size: int
    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    mlp_ratio: float = 4.0

    @property
    def stride(self) -> int:
        """Pixels from one output token to the next."""
        return self.patch_size << (len(self.depths) - 1)

    @property
    def features(self) -> int:
        """Width of an output token, D."""
        return self.width << (len(self.depths) - 1)

    @property
    def blocks(self) -> int:
        """Number of Transformer blocks."""
        return sum(self.depths)

    @property
    def windows(self) -> tuple[tuple[int, int], ...]:
        """Tokens of a window down and across in each stage: no more than the stage has, as in the published code."""
        scale = 2 ** (len(self.depths) - 1)
        sides = [
            (self.grid[0] * scale // 2**stage, self.grid[1] * scale // 2**stage) for stage in range(len(self.depths))
        ]
        return tuple((min(self.window, down), min(self.window, across)) for down, across in sides)


EncoderSpec = VitSpec | SwinSpec

LAYER_SCALE = 0.1
"""What the factors of both branches of a block begin with in the relative form (BEiT-B, SimMIM's ViT-B)."""

VIT_PRESETS: dict[str, dict[str, int]] = {
    "vit_tiny": {"width": 192, "depth": 12, "heads": 3},
    "vit_small": {"width": 384, "depth": 12, "heads": 6},
    "vit_base": {"width": 768, "depth": 12, "heads": 12},
    "vit_large": {"width": 1024, "depth": 24, "heads": 16},
    "vit_huge": {"width": 1280, "depth": 32, "heads": 16},
}
"""Width, depth and heads of the published ViTs: Ti and S from DeiT (Touvron et al., 2021), B, L and H from ViT."""

SWIN_PRESETS: dict[str, dict[str, Any]] = {
    "swin_tiny": {"width": 96, "depth": (2, 2, 6, 2), "heads": (3, 6, 12, 24)},
    "swin_small": {"width": 96, "depth": (2, 2, 18, 2), "heads": (3, 6, 12, 24)},
    "swin_base": {"width": 128, "depth": (2, 2, 18, 2), "heads": (4, 8, 16, 32)},
    "swin_large": {"width": 192, "depth": (2, 2, 18, 2), "heads": (6, 12, 24, 48)},
}
"""Width of the first stage, depth and heads of each stage (Liu et al., 2021, section 3.3)."""

PRESETS: dict[str, dict[str, Any]] = {**VIT_PRESETS, **SWIN_PRESETS}


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


def relative_index(grid: tuple[int, int]) -> NDArray[np.int32]:
    """Row of a table of biases for each query and key of a ``grid`` = (h, w) with the class token first: (L, L).

    Pairs of patches equally far apart, down and across, share one of (2h - 1) * (2w - 1) rows, down first. Then come
    the class token to a patch, a patch to the class token, and that token to itself (Bao et al., 2022, and timm's
    ``gen_relative_position_index``).
    """
    height, width = grid
    distances = (2 * height - 1) * (2 * width - 1)
    rows, columns = (axis.ravel() for axis in np.mgrid[:height, :width])
    index = np.empty((1 + height * width,) * 2, np.int32)
    index[0], index[:, 0], index[0, 0] = distances, distances + 1, distances + 2
    down, across = rows[:, None] - rows + height - 1, columns[:, None] - columns + width - 1
    index[1:, 1:] = down * (2 * width - 1) + across
    return index
