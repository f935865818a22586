"""Settings of tasks that no backend can follow, each refused in the same words whatever the framework."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from ehm.errors import ConfigError

if TYPE_CHECKING:
    from ehm.config import OptimConfig, RetrievalConfig, SegmentationConfig

__all__ = ["refuse_other_sizes", "refuse_single_images", "refuse_whole_images"]


def refuse_other_sizes(config: RetrievalConfig, encoder: str) -> NoReturn:
    """Raise ConfigError: ``encoder``, in words, takes images of one size, and ``config`` asks for others."""
    setting = f"scales {list(config.scales)}"
    remedy = "leave [1.0]"
    if config.longest is not None:
        setting = f"longest {config.longest}"
        remedy = "leave it out"
    raise ConfigError(f"{setting}: {encoder} takes images of one size; {remedy}")


def refuse_whole_images(config: SegmentationConfig) -> NoReturn:
    """Raise ConfigError: the encoder takes images of one size, and ``config`` asks for whole images of any."""
    raise ConfigError(
        f"inference.mode whole: this encoder ({config.model.init}) takes images of crop_size {list(config.crop_size)} "
        "only; take slide"
    )


def refuse_single_images(optim: OptimConfig, parts: Sequence[int]) -> NoReturn:
    """Raise ConfigError: one of the ``parts`` of a batch is a single image, and batch norm needs two values."""
    raise ConfigError(
        f"optim.batch_size {optim.batch_size}, optim.accumulate {optim.accumulate}: a process gets parts of "
        f"{', '.join(map(str, parts))} images, and UperNet's batch norm needs 2 at least"
    )
