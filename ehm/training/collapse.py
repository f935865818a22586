"""Notice that the features of a run fall apart: a fall of a figure that lasts, or features that are all alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ehm.report.findings import LASTING, LOWEST_RANK, LOWEST_SPREAD

__all__ = ["CollapseDetector"]

LOWEST_LEAD = 0.5
"""Share of its best lead over the most frequent class below which an accuracy has fallen."""
LOWEST_FALL = 0.03
"""Smallest fall of an accuracy that counts: three standard errors of 0.8 on 2,000 images."""


class CollapseDetector:
    """Says once, in a sentence, that figures have fallen for several measurements in a row.

    ``chance`` is the accuracy of whoever always answers the most frequent class. ``state`` is what :meth:`to_json`
    gave, so that a resumed run neither forgets its best values nor says it twice.
    """

    def __init__(self, chance: float = 0.0, state: Mapping[str, Any] | None = None) -> None:
        state = state or {}
        self._chance = chance
        self._best: dict[str, float] = dict(state.get("best", {}))
        self._best_steps: dict[str, int] = dict(state.get("best_steps", {}))
        self._falls: dict[str, int] = dict(state.get("falls", {}))
        self._is_said = bool(state.get("is_said", False))

    def to_json(self) -> dict[str, Any]:
        """Return all that is remembered, as plain values."""
        return {
            "best": self._best,
            "best_steps": self._best_steps,
            "falls": self._falls,
            "is_said": self._is_said,
        }

    def add(self, step: int, figures: Mapping[str, float]) -> str | None:
        """Note the ``figures`` measured after ``step`` steps; return a warning the first time that a fall lasts."""
        lasting = []
        for name, value in figures.items():
            if value > self._best.get(name, float("-inf")):
                self._best[name] = value
                self._best_steps[name] = step
            is_fallen = self._is_fallen(name.removesuffix("_ema"), value, self._best[name])
            self._falls[name] = self._falls.get(name, 0) + 1 if is_fallen else 0
            if self._falls[name] >= LASTING:
                lasting.append(
                    f"{name} is {value:.3g} and was {self._best[name]:.3g} at step {self._best_steps[name]:,}"
                )
        if not lasting or self._is_said:
            return None
        self._is_said = True
        return (
            f"The features have been much worse for {LASTING} measurements in a row, up to step {step:,}: "
            f"{'; '.join(lasting)}. If it goes on, start anew with a lower optim.base_lr or optim.clip_grad=1, and if "
            "the teacher is an average, with a higher optim.ema_decay (docs/watch.md)"
        )

    def _is_fallen(self, figure: str, value: float, best: float) -> bool:
        if figure == "rankme":
            return value < LOWEST_RANK * best
        if figure == "feature_spread":
            return value < LOWEST_SPREAD
        # all features alike still give the share of the most frequent class
        lead = value - self._chance
        return lead < LOWEST_LEAD * (best - self._chance) and value < best - LOWEST_FALL
