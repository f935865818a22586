"""Early stopping: a run of a task ends once a number of measurements in a row brought no new best."""

from __future__ import annotations

from typing import Any

from ehm.storage.checkpoint import Checkpoint

__all__ = ["Patience"]

_KEY = "measurements_without_gain"


class Patience:
    """Counts measurements without a new best, up to ``limit``; without a limit the run never stops early.

    ``start`` is the checkpoint that a resumed run goes on from, whose count it takes over.
    """

    def __init__(self, limit: int | None, start: Checkpoint | None = None) -> None:
        self._limit = limit
        self._count = 0 if start is None else int(start.metadata.get(_KEY, 0))

    @property
    def is_exhausted(self) -> bool:
        """True if the run stops."""
        return self._limit is not None and self._count >= self._limit

    def count_measurement(self, is_best: bool) -> None:
        """Count a measurement, or begin anew if it is the best so far."""
        self._count = 0 if is_best else self._count + 1

    def to_json(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, so that a resumed run counts on."""
        return {_KEY: self._count}

    def describe(self, step: int, last: int) -> str:
        """Say that the run stops after ``step`` of ``last`` steps."""
        return (
            f"Stopped early after {step:,} of {last:,} steps: no new best in {self._count} measurements "
            f"(patience {self._limit})"
        )
