"""The steps of a pretraining run: masks and rates that follow from the seed, the step and the weights alone.

Whoever takes a step again, from the same weights, takes the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, SupportsFloat

from ehm.backends.base import Learner, PreparedBatch, TakesMaskPieces
from ehm.config import TrainConfig
from ehm.data import Batch
from ehm.masking.masker import Masker, NotFiniteAttentionError, make_masker
from ehm.masking.pieces import BatchMasks, MaskPiece
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
    """A batch with its masks (B * views, N), which are made while the step is taken and may lie on the device.

    ``problems`` say why masks are random ones instead, if any are; they are known once all masks are made.
    """

    prepared: PreparedBatch
    masks: BatchMasks
    problems: list[str] = field(default_factory=list)


class MaskedSteps:
    """The steps of ``learner`` in a run of ``config``, counted from 0."""

    def __init__(self, config: TrainConfig, plan: RunPlan, learner: Learner, masker: Masker) -> None:
        self._config = config
        self._plan = plan
        self._learner = learner
        self._masker = masker
        self._random_masker = make_masker("random", config.masks, config.units)

    def prepare_ahead(self, batches: Iterator[Batch]) -> Iterator[tuple[Batch, PreparedBatch]]:
        """Yield each of ``batches`` and its images as the learner has prepared them, always with the next one prepared.

        The images of a step travel to an accelerator while that still works on the step before.
        """
        ahead = None
        for batch in batches:
            following = (batch, self._learner.prepare_batch(batch.images))
            if ahead is not None:
                yield ahead
            ahead = following
        if ahead is not None:
            yield ahead

    def mask_batch(
        self,
        step: int,
        batch: Batch,
        prepared: PreparedBatch,
        time_pieces: Callable[[Iterator[MaskPiece]], Iterator[MaskPiece]] = iter,
    ) -> MaskedBatch:
        """Add masks to ``prepared``, the images of ``batch``, which is that of ``step``; they are made when asked for.

        ``time_pieces`` may count the time that it takes until each piece of them is there.
        """
        problems: list[str] = []
        pieces = self._make_pieces(step, prepared, batch.first, problems)
        count = len(batch.images) * self._config.mask.views
        return MaskedBatch(prepared, BatchMasks(time_pieces(pieces), count), problems)

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
        masks: Any = batch.masks
        if not isinstance(self._learner, TakesMaskPieces):
            masks = masks.read_all()
        return self._learner.train_step(batch.prepared, masks, rates.lr, rates.weight_decay, rates.ema_decay)

    def _make_pieces(self, step: int, prepared: PreparedBatch, first: int, problems: list[str]) -> Iterator[MaskPiece]:
        """Make the masks of ``prepared``, which begins at the row ``first`` of the batch of all processes.

        Weights that are not finite give no masks. The rest of the step is then taken with random ones, by every process
        as its own images are, and the run ends where its losses are read, with all processes at once.
        """
        progress = step / self._plan.total  # p = t / T of Eq. 14, with fractional epochs
        # the masks of an image follow from the seed, the step and its row, however many processes share the batch
        seed: Sequence[int] = (self._config.run.seed, step)
        made = 0
        try:
            for piece in self._masker.iterate_pieces(prepared, progress, seed, first):
                yield piece
                made += len(piece.masks)
        except NotFiniteAttentionError:
            problems.append("the attention that masks are made of is not finite")
            mask, _ = self._random_masker(prepared, progress, seed, first)
            yield MaskPiece(mask[made:], {})
