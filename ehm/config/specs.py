"""From the name of an encoder, and what a configuration overrides, to its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from ehm.config.encoders import PRESETS, SWIN_PRESETS, EncoderSpec, SwinSpec, VitSpec

__all__ = ["encoder_spec", "patch_size_of"]


class Overrides(Protocol):
    """What a section may say about an encoder's sizes; None leaves those of its name."""

    @property
    def width(self) -> int | None: ...

    @property
    def depth(self) -> int | tuple[int, ...] | None: ...

    @property
    def heads(self) -> int | tuple[int, ...] | None: ...

    @property
    def window(self) -> int | None: ...


def patch_size_of(encoder: str) -> int:
    """Pixels of a patch as published: 16 of a ViT, 4 of a Swin."""
    return 4 if encoder in SWIN_PRESETS else 16


def encoder_spec(
    encoder: str, image_size: tuple[int, int], patch_size: int | None, model: Overrides, relative: bool = False
) -> EncoderSpec:
    """The numbers of a named encoder, with what ``model`` overrides; ValueError where they do not fit together.

    ``relative`` asks for a ViT in that form. Where nothing is said, a Swin's window is the shorter side of its last
    stage: 6 at 192 pixels, 7 at 224, as published.
    """
    preset = PRESETS[encoder]
    width = model.width or preset["width"]
    depth, heads = model.depth or preset["depth"], model.heads or preset["heads"]
    patch_size = patch_size or patch_size_of(encoder)
    if encoder in SWIN_PRESETS:
        return _swin(encoder, image_size, patch_size, width, depth, heads, model.window)
    if not isinstance(depth, int) or not isinstance(heads, int):
        raise ValueError(f"model.depth and model.heads of {encoder} are one number each; only a Swin has stages")
    if model.window is not None:
        raise ValueError(f"model.window {model.window}: {encoder} has no windows; only a Swin has")
    if width % heads:
        raise ValueError(f"model.width {width} is not a multiple of model.heads {heads}")
    if width % 4 and not relative:
        raise ValueError(f"model.width {width} is not a multiple of 4, which sine-cosine positions need")
    spec = VitSpec(image_size, patch_size, width, depth, heads, relative=relative)
    _check_divides(spec, f"patch_size {patch_size}")
    return spec


def _swin(
    encoder: str, image_size: tuple[int, int], patch_size: int, width: int, depths: Any, heads: Any, window: int | None
) -> SwinSpec:
    if not isinstance(depths, Sequence) or not isinstance(heads, Sequence) or len(depths) != len(heads):
        raise ValueError(f"model.depth and model.heads of {encoder} are lists of one number a stage, equally long")
    for stage, count in enumerate(heads):
        if (width * 2**stage) % count:
            raise ValueError(
                f"model.heads {list(heads)}: stage {stage + 1} is {width * 2**stage} wide, no multiple of {count}"
            )
    spec = SwinSpec(image_size, patch_size, width, tuple(depths), tuple(heads), window or 1)
    _check_divides(spec, f"{spec.stride}, the stride of {encoder} with patch_size {patch_size}")
    return spec if window else replace(spec, window=min(spec.grid))


def _check_divides(spec: EncoderSpec, by: str) -> None:
    if spec.image_size[0] % spec.stride or spec.image_size[1] % spec.stride:
        raise ValueError(f"image_size {list(spec.image_size)} is not a multiple of {by}")
