"""Vision Transformers as numbers: sizes, published presets, positions, and what a configuration may override."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ehm.config.encoders.base import BaseSpec, SizeOverrides
from ehm.config.encoders.form import PLAIN, VitForm

__all__ = ["LAYER_SCALE", "VIT_PRESETS", "VitSpec", "compute_relative_index", "compute_sincos_positions"]

LAYER_SCALE = 0.1
"""Initial value of the factors of both branches of a block in the relative form (BEiT-B, SimMIM's ViT-B)."""

VIT_PRESETS: dict[str, dict[str, int]] = {
    "vit_tiny": {"width": 192, "depth": 12, "heads": 3},
    "vit_small": {"width": 384, "depth": 12, "heads": 6},
    "vit_base": {"width": 768, "depth": 12, "heads": 12},
    "vit_large": {"width": 1024, "depth": 24, "heads": 16},
    "vit_huge": {"width": 1280, "depth": 32, "heads": 16},
}
"""Width, depth and heads of the published ViTs: Ti and S from DeiT (Touvron et al., 2021), B, L and H from ViT."""


@dataclass(frozen=True)
class VitSpec(BaseSpec):
    """A Vision Transformer (Dosovitskiy et al., 2021) over ``image_size`` = (height, width) pixels of ``channels``.

    ``relative`` is the form of BEiT and of SimMIM's ViT: attention has a bias for every relative position and keys have
    none, no positions are added to the tokens, and each branch is scaled by a factor for every feature (layer scale).
    ``form`` says what else differs from the plain ViT. The MLP has ``mlp_ratio`` times ``width`` hidden features, which
    its last layer takes.
    """

    image_size: tuple[int, int]
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    relative: bool = False
    form: VitForm = PLAIN
    channels: int = 3

    family: ClassVar[str] = "vit"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = VIT_PRESETS
    published_patch_size: ClassVar[int] = 16
    encodes_subsets: ClassVar[bool] = True
    classifier: ClassVar[str] = "head"

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

    @property
    def has_class_token(self) -> bool:
        """True if a class token stands before the patches."""
        return self.form.class_token

    @property
    def is_plain(self) -> bool:
        """True for the ViT of MAE: learned or fixed positions are added, and nothing differs from the plain form."""
        return not self.relative and self.form == PLAIN

    @property
    def hidden_features(self) -> int:
        """Number of features that the last layer of an MLP takes."""
        return round(self.width * self.mlp_ratio)

    @property
    def description(self) -> str:
        """The kind of encoder in words."""
        if self.relative:
            return "a ViT with relative positions, as SimMIM's and BEiT's"
        if self.form != PLAIN:
            return f"a ViT with {self.form.differences}"
        return "a plain ViT, as MAE's"

    def table_grid(self, name: str) -> tuple[int, int]:
        """Tokens down and across that attend to each other: all of them, in every block."""
        return self.grid

    @classmethod
    def from_settings(
        cls,
        encoder: str,
        image_size: tuple[int, int],
        patch_size: int,
        model: SizeOverrides,
        relative: bool,
        channels: int = 3,
    ) -> VitSpec:
        """Return the ViT, in the ``relative`` form or not, that the preset ``encoder`` and ``model`` give.

        Raises ValueError if the numbers do not fit together.
        """
        preset = cls.presets[encoder]
        width = model.width or preset["width"]
        depth = model.depth or preset["depth"]
        heads = model.heads or preset["heads"]
        if not isinstance(depth, int) or not isinstance(heads, int):
            raise ValueError(f"model.depth and model.heads of {encoder} are one number each; only a Swin has stages")
        if model.window is not None:
            raise ValueError(f"model.window {model.window}: {encoder} has no windows; only a Swin has")
        if width % heads:
            raise ValueError(f"model.width {width} is not a multiple of model.heads {heads}")
        if width % 4 and not relative:
            raise ValueError(f"model.width {width} is not a multiple of 4, which sine-cosine positions need")
        mlp_ratio = model.mlp_ratio or cls.mlp_ratio
        form = model.form
        if relative and form.model_copy(update={"norm_epsilon": PLAIN.norm_epsilon}) != PLAIN:
            raise ValueError(
                f"model.form with {form.differences}: not with BEiT's relative positions; set model.relative to false"
            )
        spec = cls(image_size, patch_size, width, depth, heads, mlp_ratio, relative, form, channels)
        spec.check_image_size(f"patch_size {patch_size}")
        return spec


def compute_sincos_positions(width: int, grid: tuple[int, int]) -> NDArray[np.float32]:
    """Compute the sine-cosine positions of a grid, with zeros for the class token first: (1, 1 + N, width).

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


def compute_relative_index(grid: tuple[int, int]) -> NDArray[np.int32]:
    """Return the row of a table of biases for each query and key of a ``grid`` = (h, w) with a class token: (L, L).

    Pairs of patches equally far apart, down and across, share one of (2h - 1) * (2w - 1) rows, down first. Then come
    the class token to a patch, a patch to the class token, and that token to itself (Bao et al., 2022, and timm's
    ``gen_relative_position_index``).
    """
    height, width = grid
    distances = (2 * height - 1) * (2 * width - 1)
    rows, columns = (axis.ravel() for axis in np.mgrid[:height, :width])
    down = rows[:, None] - rows + height - 1
    across = columns[:, None] - columns + width - 1
    index = np.empty((1 + height * width,) * 2, np.int32)
    index[1:, 1:] = down * (2 * width - 1) + across
    index[0] = distances
    index[:, 0] = distances + 1
    index[0, 0] = distances + 2
    return index
