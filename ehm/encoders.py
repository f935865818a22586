"""The encoders that have a name, as numbers: no framework, so that every backend builds the same ones."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["VIT_PRESETS", "VitSpec"]


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
