"""Detect the collapse of features during a run: a figure that falls and stays low, or features that are all alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ehm.report.findings import LASTING, LOWEST_RANK, LOWEST_SPREAD

__all__ = ["CollapseDetector"]

LOWEST_LEAD = 0.5
"""An accuracy has fallen if its lead over the most frequent class is below this share of its best lead."""
LOWEST_FALL = 0.03
"""Smallest fall of an accuracy that counts: three standard errors of an accuracy of 0.8 on 2,000 images."""


class CollapseDetector:
    """Watches figures, and warns once in a run if some are low for several measurements in a row.

    ``chance`` is the accuracy of always answering the most frequent class. ``state`` is the result of :meth:`to_json`
    in the checkpoint of a resumed run: its best values, and whether it has warned.
    """

    def __init__(self, chance: float = 0.0, state: Mapping[str, Any] | None = None) -> None:
        state = state or {}
        self._chance = chance
        self._best: dict[str, float] = dict(state.get("best", {}))
        self._best_steps: dict[str, int] = dict(state.get("best_steps", {}))
        self._falls: dict[str, int] = dict(state.get("falls", {}))
        self._is_said = bool(state.get("is_said", False))

    def to_json(self) -> dict[str, Any]:
        """Return the state as plain values."""
        return {
            "best": self._best,
            "best_steps": self._best_steps,
            "falls": self._falls,
            "is_said": self._is_said,
        }

    def add(self, step: int, figures: Mapping[str, float]) -> str | None:
        """Add the ``figures`` measured after ``step`` steps; return a warning the first time that a fall lasts."""
        lasting_falls = []
        for name, value in figures.items():
            if value > self._best.get(name, float("-inf")):
                self._best[name] = value
                self._best_steps[name] = step
            is_fallen = self._is_fallen(name.removesuffix("_ema"), value, self._best[name])
            self._falls[name] = self._falls.get(name, 0) + 1 if is_fallen else 0
            if self._falls[name] >= LASTING:
                lasting_falls.append(
                    f"{name} is {value:.3g} and was {self._best[name]:.3g} at step {self._best_steps[name]:,}"
                )
        if not lasting_falls or self._is_said:
            return None
        self._is_said = True
        return (
            f"The features have been much worse for {LASTING} measurements in a row, up to step {step:,}: "
            f"{'; '.join(lasting_falls)}. If it goes on, start anew with a lower optim.base_lr or optim.clip_grad=1, "
            "and if the teacher is an average, with a higher optim.ema_decay (docs/watch.md)"
        )

    def _is_fallen(self, figure: str, value: float, best: float) -> bool:
        if figure == "rankme":
            return value < LOWEST_RANK * best
        if figure == "feature_spread":
            return value < LOWEST_SPREAD
        # compared with chance, because even features that are all alike reach the share of the most frequent class
        lead = value - self._chance
        return lead < LOWEST_LEAD * (best - self._chance) and value < best - LOWEST_FALL
