"""Swin Transformers as numbers: sizes, published presets, and what a configuration may override."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ehm.config.encoders.base import BaseSpec, SizeOverrides
from ehm.config.encoders.form import PLAIN

__all__ = ["SWIN_PRESETS", "SwinSpec"]

SWIN_PRESETS: dict[str, dict[str, Any]] = {
    "swin_tiny": {"width": 96, "depth": (2, 2, 6, 2), "heads": (3, 6, 12, 24)},
    "swin_small": {"width": 96, "depth": (2, 2, 18, 2), "heads": (3, 6, 12, 24)},
    "swin_base": {"width": 128, "depth": (2, 2, 18, 2), "heads": (4, 8, 16, 32)},
    "swin_large": {"width": 192, "depth": (2, 2, 18, 2), "heads": (6, 12, 24, 48)},
}
"""Width of the first stage, depth and heads of each stage (Liu et al., 2021, section 3.3)."""


@dataclass(frozen=True)
class SwinSpec(BaseSpec):
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
    channels: int = 3

    family: ClassVar[str] = "swin"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = SWIN_PRESETS
    published_patch_size: ClassVar[int] = 4
    # SimMIM's Swin-B
    recipe: ClassVar[Mapping[str, Any]] = {"image_size": 192, "patch_size": 4, "model": {"drop_path": 0.0}}
    encodes_subsets: ClassVar[bool] = False
    classifier: ClassVar[str] = "head.fc"

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
    def has_class_token(self) -> bool:
        """False: a Swin has patches alone."""
        return False

    @property
    def description(self) -> str:
        """The kind of encoder in words."""
        return "a Swin"

    @property
    def windows(self) -> tuple[tuple[int, int], ...]:
        """Tokens of a window down and across in each stage: no more than the stage has, as in the published code."""
        windows = []
        for stage in range(len(self.depths)):
            down, across = self.measure_map(stage)
            windows.append((min(self.window, down), min(self.window, across)))
        return tuple(windows)

    def measure_map(self, stage: int) -> tuple[int, int]:
        """Return the tokens down and across in ``stage``, counted from 0."""
        scale = 2 ** (len(self.depths) - 1 - stage)
        return self.grid[0] * scale, self.grid[1] * scale

    def table_grid(self, name: str) -> tuple[int, int]:
        """Tokens down and across that attend to each other where the table of relative positions ``name`` is used."""
        stage = re.match(r"layers\.(\d+)\.", name)
        return self.grid if stage is None else self.windows[int(stage[1])]

    @classmethod
    def from_settings(
        cls,
        encoder: str,
        image_size: tuple[int, int],
        patch_size: int,
        model: SizeOverrides,
        relative: bool,
        channels: int = 3,
    ) -> SwinSpec:
        """Return the Swin that the preset ``encoder`` and the overrides of ``model`` give.

        Without a window in ``model``, the window is the shorter side of the last stage: 6 at 192 pixels, 7 at 224, as
        published. ``relative`` changes nothing: positions in windows are always relative. Raises ValueError if the
        numbers do not fit together.
        """
        preset = cls.presets[encoder]
        width = model.width or preset["width"]
        depths = model.depth or preset["depth"]
        heads = model.heads or preset["heads"]
        if not isinstance(depths, Sequence) or not isinstance(heads, Sequence) or len(depths) != len(heads):
            raise ValueError(f"model.depth and model.heads of {encoder} are lists of one number a stage, equally long")
        for stage, count in enumerate(heads):
            stage_width = width * 2**stage
            if stage_width % count:
                raise ValueError(
                    f"model.heads {list(heads)}: stage {stage + 1} is {stage_width} wide, no multiple of {count}"
                )
        if model.form != PLAIN:
            raise ValueError(f"model.form with {model.form.differences}: {encoder} has none; only a ViT has")
        mlp_ratio = model.mlp_ratio or cls.mlp_ratio
        window = model.window or 1  # until the grid is known
        spec = cls(image_size, patch_size, width, tuple(depths), tuple(heads), window, mlp_ratio, channels)
        spec.check_image_size(f"{spec.stride}, the stride of {encoder} with patch_size {patch_size}")
        return spec if model.window else replace(spec, window=min(spec.grid))
