"""Early stopping: a run of a task ends after a number of measurements in a row without a new best score."""

from __future__ import annotations

from typing import Any

from ehm.storage.checkpoint import Checkpoint

__all__ = ["Patience"]

_KEY = "measurements_without_gain"


class Patience:
    """Counts the measurements since the best one, up to ``limit``; without a limit the run never stops early.

    A resumed run continues the count of its checkpoint ``start``.
    """

    def __init__(self, limit: int | None, start: Checkpoint | None = None) -> None:
        self._limit = limit
        self._count = 0 if start is None else int(start.metadata.get(_KEY, 0))

    @property
    def is_exhausted(self) -> bool:
        """True if the run has to stop."""
        return self._limit is not None and self._count >= self._limit

    def count_measurement(self, is_best: bool) -> None:
        """Count a measurement, or restart the count if it is the best so far."""
        self._count = 0 if is_best else self._count + 1

    def to_json(self) -> dict[str, Any]:
        """Return the metadata from which a resumed run continues the count."""
        return {_KEY: self._count}

    def describe(self, step: int, last: int) -> str:
        """Say that the run stops after ``step`` of ``last`` steps."""
        return (
            f"Stopped early after {step:,} of {last:,} steps: no new best in {self._count} measurements "
            f"(patience {self._limit})"
        )
