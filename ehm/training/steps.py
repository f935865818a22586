"""The steps of a pretraining run: masks and rates that follow from the seed, the step and the weights alone.

Whoever takes a step again, from the same weights, takes the same one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, SupportsFloat

import numpy as np

from ehm.backends.base import Learner, PreparedBatch
from ehm.config import TrainConfig
from ehm.data import Batch
from ehm.masking.masker import SALIENCY_MASKINGS, Masker, make_masker
from ehm.training.plan import RunPlan
from ehm.training.schedule import ema_decay_at, learning_rate_at

__all__ = ["MaskedBatch", "MaskedSteps", "StepRates"]


@dataclass(frozen=True)
class StepRates:
    """The learning rate, the weight decay and the decay of the moving average in a step."""

    lr: float
    weight_decay: float
    ema_decay: float | None

    def to_json(self) -> dict[str, float | None]:
        """Return the rates by name."""
        return asdict(self)


@dataclass(frozen=True)
class MaskedBatch:
    """A batch with its masks (B * views, N), which may lie on the device, and the figures of their hierarchies.

    ``problem`` says why the masks are random ones instead, if they are.
    """

    prepared: PreparedBatch
    mask: Any
    figures: Mapping[str, SupportsFloat]
    problem: str | None = None


class MaskedSteps:
    """The steps of ``learner`` in a run of ``config``, counted from 0."""

    def __init__(self, config: TrainConfig, plan: RunPlan, learner: Learner, masker: Masker) -> None:
        self._config = config
        self._plan = plan
        self._learner = learner
        self._masker = masker
        self._random_masker = make_masker("random", config.masks, config.units)

    def make_masks(self, step: int, batch: Batch) -> MaskedBatch:
        """Prepare ``batch``, which is that of ``step``, and make its masks.

        Weights that are not finite give no masks. The step is then taken with random ones, by every process as its own
        images are, and the run ends where its losses are read, with all processes at once.
        """
        progress = step / self._plan.total  # p = t / T of Eq. 14, with fractional epochs
        prepared = self._learner.prepare_batch(batch.images)
        # the masks of an image follow from the seed, the step and its row, however many processes share the batch
        seed = (self._config.run.seed, step)
        try:
            mask, figures = self._masker(prepared, progress, seed, batch.first)
        except ValueError:
            if self._gives_finite_attention(prepared):
                raise
            mask, figures = self._random_masker(prepared, progress, seed, batch.first)
            return MaskedBatch(prepared, mask, figures, "the attention that masks are made of is not finite")
        return MaskedBatch(prepared, mask, figures)

    def rates_at(self, step: int) -> StepRates:
        """Return the rates of ``step``."""
        optim = self._config.optim
        return StepRates(
            learning_rate_at(optim, step, self._plan.steps_per_epoch),
            optim.weight_decay,
            ema_decay_at(optim, step, self._plan.steps_per_epoch),
        )

    def take(self, batch: MaskedBatch, rates: StepRates) -> Mapping[str, SupportsFloat]:
        """Take a step on ``batch`` at ``rates``; its metrics stay on the device."""
        return self._learner.train_step(batch.prepared, batch.mask, rates.lr, rates.weight_decay, rates.ema_decay)

    def _gives_finite_attention(self, prepared: PreparedBatch) -> bool:
        if self._config.masking in SALIENCY_MASKINGS:
            pieces = prepared.compute_saliency()
        else:
            pieces = prepared.compute_similarity()
        return all(bool(np.isfinite(piece).all()) for piece in pieces)
