"""The numbers that every encoder has, whatever its family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from ehm.config.encoders.form import VitForm

__all__ = ["BaseSpec", "SizeOverrides"]


class SizeOverrides(Protocol):
    """A section that may override the sizes of a named encoder; None keeps the published ones."""

    @property
    def width(self) -> int | None:
        """Features of a token."""
        ...

    @property
    def depth(self) -> int | tuple[int, ...] | None:
        """Blocks, or blocks of each stage."""
        ...

    @property
    def heads(self) -> int | tuple[int, ...] | None:
        """Heads, or heads of each stage."""
        ...

    @property
    def window(self) -> int | None:
        """Side of a window in tokens."""
        ...

    @property
    def mlp_ratio(self) -> float | None:
        """Hidden features of an MLP for each feature of a token."""
        ...

    @property
    def form(self) -> VitForm:
        """Form of a ViT, if it is not the plain one."""
        ...


class BaseSpec(ABC):
    """An encoder as numbers; its output tokens lie in a grid, ``stride`` pixels apart."""

    family: ClassVar[str]
    """Name of the family, in checkpoints and in the tables of the backends."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]
    """Width, depth and heads of each published encoder of the family, by the name that a configuration gives it."""
    published_patch_size: ClassVar[int]
    """Side of a patch in pixels, as published."""
    recipe: ClassVar[Mapping[str, Any]] = {}
    """Values of a pretraining configuration that the family's published recipe sets otherwise than the objective's."""
    encodes_subsets: ClassVar[bool]
    """True if the encoder can see some of the patches alone, as MAE needs it."""
    classifier: ClassVar[str]
    """Name of the linear classifier in timm's network."""

    image_size: tuple[int, int]
    channels: int
    """Channels of the images."""

    @property
    @abstractmethod
    def stride(self) -> int:
        """Pixels from one output token to the next."""

    @property
    @abstractmethod
    def has_class_token(self) -> bool:
        """True if a class token stands before the patches."""

    @property
    @abstractmethod
    def description(self) -> str:
        """The kind of encoder in words, with its article, for messages."""

    @abstractmethod
    def table_grid(self, name: str) -> tuple[int, int]:
        """Tokens down and across that attend to each other where the table of relative positions ``name`` is used."""

    @property
    def grid(self) -> tuple[int, int]:
        """Output tokens down and across."""
        return self.image_size[0] // self.stride, self.image_size[1] // self.stride

    @property
    def patches(self) -> int:
        """Number of output tokens, N."""
        return self.grid[0] * self.grid[1]

    def check_image_size(self, divisor: str) -> None:
        """Raise ValueError, which names the stride as ``divisor``, if it does not divide the image."""
        if self.image_size[0] % self.stride or self.image_size[1] % self.stride:
            raise ValueError(f"image_size {list(self.image_size)} is not a multiple of {divisor}")
