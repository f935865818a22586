"""The types of values that the keys of a configuration may have, and their checks."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from ehm.config.encoders import PRESETS
from ehm.config.pixel_format import MOST_CHANNELS
from ehm.suggestions import suggest

__all__ = [
    "BelowOne",
    "Channels",
    "ClassName",
    "Count",
    "Decay",
    "EncoderName",
    "Fraction",
    "ImageSize",
    "NotNegative",
    "PixelRange",
    "Positive",
    "PositiveRange",
    "PositiveReal",
    "PositiveReals",
    "Share",
    "ShareRange",
    "Stages",
    "Unit",
    "UnitRange",
    "require_match",
]


def _check_rising(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"should not fall, for example {sorted(value)}")
    return value


def require_match(pattern: str, meaning: str) -> Callable[[str], str]:
    """Return a check that a text matches ``pattern`` as a whole; its error says that it should be ``meaning``."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"should be {meaning}")
        return value

    return check


def _check_black_and_white(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] >= value[1]:
        raise ValueError("should rise: [black, white], for example [0, 4095]")
    return value


def _write_number(value: Any) -> Any:
    # classes without names are called by their numbers, which YAML does not read as text
    return str(value) if type(value) is int else value


def _expand_square(value: Any) -> Any:
    # bool is a subclass of int, so isinstance would accept true
    if type(value) is int:
        return value, value
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError("should be a number of pixels or [height, width]")
    return value


def _check_stages(value: Any) -> Any:
    numbers = value if isinstance(value, (list, tuple)) else [value]
    # bool is a subclass of int, so isinstance would accept true
    if not numbers or any(type(number) is not int or number < 1 for number in numbers):
        raise ValueError("should be a whole number from 1, or of a Swin a list of them, one for each stage")
    return value


def _check_decay(value: Any) -> Any:
    ends = value if isinstance(value, (list, tuple)) and len(value) == 2 else [value]
    # bool is a subclass of int, so isinstance would accept true
    are_numbers = all(type(end) in (int, float) for end in ends)
    # an average with a decay of 1 from the beginning would never move
    if not are_numbers or not 0 < ends[0] < 1 or not ends[0] <= ends[-1] <= 1:
        raise ValueError("should be a number between 0 and 1, or two that rise, for example [0.996, 1]")
    return value


def _check_channels(value: Any) -> Any:
    meaning = f"should be a number from 1 to {MOST_CHANNELS}, or as many different names"
    if isinstance(value, (list, tuple)):
        names = [str(name) for name in value]
        if not 1 <= len(names) <= MOST_CHANNELS or len(set(names)) < len(names):
            raise ValueError(meaning)
        return tuple(names)
    if type(value) is not int or not 1 <= value <= MOST_CHANNELS:
        raise ValueError(meaning)
    return value


def _check_encoder(encoder: str) -> str:
    if encoder not in PRESETS:
        raise ValueError(f"should be one of {', '.join(PRESETS)}{suggest(encoder, PRESETS)}")
    return encoder


ClassName = Annotated[str, BeforeValidator(_write_number)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Unit = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1, lt=2**31)]
NotNegative = Annotated[float, Field(ge=0)]
PositiveReal = Annotated[float, Field(gt=0)]
PositiveReals = tuple[PositiveReal, ...]
Channels = Annotated[Annotated[int, Field(ge=1, le=MOST_CHANNELS)] | tuple[str, ...], BeforeValidator(_check_channels)]
"""A number of channels, or their names."""

ShareRange = Annotated[tuple[Share, Share], AfterValidator(_check_rising)]
UnitRange = Annotated[tuple[Unit, Unit], AfterValidator(_check_rising)]
PositiveRange = Annotated[tuple[PositiveReal, PositiveReal], AfterValidator(_check_rising)]
PixelRange = Annotated[tuple[float, float], AfterValidator(_check_black_and_white)]

# The schema names the encoders for ehm configs --keys; a Literal would have to repeat them.
EncoderName = Annotated[str, AfterValidator(_check_encoder), WithJsonSchema({"enum": list(PRESETS)})]
ImageSize = Annotated[tuple[Positive, Positive], BeforeValidator(_expand_square)]
"""Height and width in pixels; one number means a square."""
Decay = Annotated[Fraction | tuple[Fraction, Share], BeforeValidator(_check_decay)]
"""The decay of a moving average: one for the whole run, or the first and the last of one that rises."""
Stages = Annotated[Positive | tuple[Positive, ...], BeforeValidator(_check_stages)] | None
"""One number, or for a Swin one for each stage; None is the published one."""
