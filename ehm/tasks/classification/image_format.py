"""The channels and the depth of the images that a classifier is trained on."""

from __future__ import annotations

from ehm.config import FinetuneConfig
from ehm.config.data import refuse_colour_augmentations
from ehm.config.pixel_format import PixelFormat
from ehm.errors import ConfigError
from ehm.models.opening import find_pixels

__all__ = ["complete_format", "refuse_augmentations"]


def complete_format(config: FinetuneConfig, init: str) -> FinetuneConfig:
    """Return ``config`` with the channels and the depth of the weights ``init`` for keys that it does not set."""
    pixels = config.data.complete_pixels(find_pixels(init))
    found = {"channels": pixels.channels, "depth": pixels.depth, "range": pixels.range, "window": pixels.window}
    return config.model_copy(update={"data": config.data.model_copy(update=found)})


def refuse_augmentations(config: FinetuneConfig, pixels: PixelFormat) -> None:
    """Raise ConfigError if training varies the colours of images that have none."""
    settings = {"augment.rand_augment": config.augment.rand_augment, "data.color_jitter": config.data.color_jitter}
    try:
        refuse_colour_augmentations(pixels, settings)
    except ValueError as error:
        raise ConfigError(str(error)) from None
