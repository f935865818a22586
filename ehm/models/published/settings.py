"""Settings of a JSON file that others wrote, read one at a time, each as the type that it has to be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ehm.errors import CheckpointError
from ehm.storage.reading import describe_value, read_json, shorten

__all__ = ["Settings"]

T = TypeVar("T")
_LARGEST = 1 << 20
"""Most that a whole number may be: far more than any size of an encoder, and little enough to compute with."""


class Settings:
    """The settings in a section of a JSON file; every error is a CheckpointError that names the file and the key."""

    def __init__(self, values: Mapping[str, Any], origin: str) -> None:
        self._values = values
        self._origin = origin

    @classmethod
    def read(cls, file: Path) -> Settings:
        """Read the JSON in ``file``; CheckpointError if it is no section of settings."""
        values = read_json(file, CheckpointError, "a file of settings in JSON")
        if not isinstance(values, Mapping):
            raise CheckpointError(f"{file}: not a file of settings in JSON: it holds a {type(values).__name__}")
        return cls(values, str(file))

    def __contains__(self, key: str) -> bool:
        """Tell whether ``key`` is set; null does not count."""
        return self._values.get(key) is not None

    def section(self, key: str) -> Settings:
        """Return the settings below ``key``, empty if there are none."""
        values = self._values.get(key)
        if values is None:
            values = {}
        if not isinstance(values, Mapping):
            raise self.refuse(key, "a section")
        return Settings(values, f"{self._origin}: {key}")

    def is_section(self, key: str) -> bool:
        """Tell whether settings lie below ``key``."""
        return isinstance(self._values.get(key), Mapping)

    def text(self, key: str, default: str = "") -> str:
        """Return a text."""
        value = self._values.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.refuse(key, "a text")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self._values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.refuse(key, "true or false")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """Return a whole number above 0."""
        value = self._values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST:
            raise self.refuse(key, "a whole number above 0")
        return value

    def number(self, key: str, default: float) -> float:
        """Return a finite number above 0."""
        value = self._values.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.refuse(key, "a number above 0")
        return float(value)

    def pair(self, key: str) -> tuple[int, int]:
        """Return a height and a width, which may be given as one number or as ``height`` and ``width``."""
        value = self._values.get(key)
        if isinstance(value, Mapping):
            section = self.section(key)
            return section.count("height"), section.count("width")
        if isinstance(value, list) and len(value) == 2:
            both = Settings({"height": value[0], "width": value[1]}, f"{self._origin}: {key}")
            return both.count("height"), both.count("width")
        side = self.count(key)
        return side, side

    def triple(self, key: str) -> tuple[float, float, float]:
        """Return three numbers, one for each of R, G and B; one number stands for all of them."""
        value = self._values.get(key)
        values = value if isinstance(value, list) else [value] * 3
        are_numbers = all(isinstance(part, int | float) and not isinstance(part, bool) for part in values)
        if len(values) != 3 or not are_numbers:
            raise self.refuse(key, "three numbers")
        red, green, blue = map(float, values)
        return red, green, blue

    def table(self, key: str) -> Mapping[str, Any]:
        """Return what is below ``key`` as it is, an empty table if that is no section."""
        values = self._values.get(key)
        return values if isinstance(values, Mapping) else {}

    def build(self, make: Callable[[Mapping[str, Any]], T]) -> T:
        """Return what ``make`` builds of all settings; its ValueError and TypeError become a CheckpointError."""
        try:
            return make(self._values)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{self._origin}: {shorten(str(error))}") from None

    def names(self) -> list[str]:
        """Return the names of all settings that are not null."""
        return [key for key, value in self._values.items() if value is not None]

    def refuse(self, key: str, wanted: str) -> CheckpointError:
        """Return an error about the value of ``key``, which should be what is ``wanted``."""
        value = self._values.get(key)
        if value is None:
            return CheckpointError(f"{self._origin}: has no {key}, which is {wanted}")
        return CheckpointError(f"{self._origin}: {key} is {describe_value(value)}, and not {wanted}")

    def refuse_setting(self, key: str, reason: str) -> CheckpointError:
        """Return an error about ``key``, whose value is possible but asks for what ehm does not have."""
        return CheckpointError(f"{self._origin}: {key} {describe_value(self._values.get(key))}: {reason}")
