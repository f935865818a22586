"""The table of encoder families, and the way from an encoder's name to its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ehm.config.encoders.base import SizeOverrides
from ehm.config.encoders.swin import SwinSpec
from ehm.config.encoders.vit import VitSpec

__all__ = ["FAMILIES", "PRESETS", "EncoderSpec", "encoder_spec", "find_family"]

EncoderSpec = VitSpec | SwinSpec

FAMILIES: dict[str, type[VitSpec] | type[SwinSpec]] = {
    "vit": VitSpec,
    "swin": SwinSpec,
}
"""The class of specs of each family. Backends have tables with the same keys for what they build from a spec."""

PRESETS: dict[str, Mapping[str, Any]] = {
    name: sizes for family in FAMILIES.values() for name, sizes in family.presets.items()
}
"""Sizes of every encoder that a configuration can name."""


def find_family(encoder: str) -> type[VitSpec] | type[SwinSpec]:
    """Return the family of a named encoder; raises KeyError if nothing has that name."""
    for family in FAMILIES.values():
        if encoder in family.presets:
            return family
    raise KeyError(encoder)


def encoder_spec(
    encoder: str,
    image_size: tuple[int, int],
    patch_size: int | None,
    model: SizeOverrides,
    relative: bool = False,
    channels: int = 3,
) -> EncoderSpec:
    """Return the numbers of a named encoder with the overrides of ``model``, for images of ``channels``.

    ``patch_size`` None is the published one; ``relative`` asks for a ViT in that form. Raises ValueError if the numbers
    do not fit together.
    """
    family = find_family(encoder)
    patch_size = patch_size or family.published_patch_size
    return family.from_settings(encoder, image_size, patch_size, model, relative, channels)
