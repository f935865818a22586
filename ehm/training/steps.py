"""The steps of a pretraining run.

The masks and rates of a step depend only on the configuration, the seed, the number of the step and the weights before
it. A step that is taken again from the same weights is therefore the same step: resuming and ``--replay`` rely on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, SupportsFloat

from ehm.backends.base import Learner, PreparedBatch, TakesMaskPieces
from ehm.config import TrainConfig
from ehm.data import Batch
from ehm.masking.base import Masker
from ehm.masking.masker import make_masker
from ehm.masking.pieces import BatchMasks, MaskPiece
from ehm.masking.similarity import NotFiniteAttentionError
from ehm.training.plan import RunPlan
from ehm.training.schedule import ema_decay_at, learning_rate_at

__all__ = ["MaskedBatch", "MaskedSteps", "StepRates"]


@dataclass(frozen=True)
class StepRates:
    """The learning rate, the weight decay and the decay of the moving average of a step."""

    lr: float
    weight_decay: float
    ema_decay: float | None

    def to_json(self) -> dict[str, float | None]:
        """Return the rates by name."""
        return asdict(self)


@dataclass(frozen=True)
class MaskedBatch:
    """A batch of B images with its masks (B * views, N), which are made piece by piece while the step is taken.

    Masks may be arrays on the device. If some had to be random ones, ``problems`` says why once all masks are made.
    """

    prepared: PreparedBatch
    masks: BatchMasks
    problems: list[str] = field(default_factory=list)


class MaskedSteps:
    """Masks batches and takes the steps of ``learner``, which are counted from 0."""

    def __init__(self, config: TrainConfig, plan: RunPlan, learner: Learner, masker: Masker) -> None:
        self._config = config
        self._plan = plan
        self._learner = learner
        self._masker = masker
        self._random_masker = make_masker("random", config.masks, config.units)

    def prepare_ahead(self, batches: Iterator[Batch]) -> Iterator[tuple[Batch, PreparedBatch]]:
        """Yield each batch with its images as the learner has prepared them, one batch late.

        The next batch is prepared before one is yielded, so that its images are copied to an accelerator while that
        computes the step of the yielded one.
        """
        current = None
        for batch in batches:
            following = (batch, self._learner.prepare_batch(batch.images))
            if current is not None:
                yield current
            current = following
        if current is not None:
            yield current

    def mask_batch(
        self,
        step: int,
        batch: Batch,
        prepared: PreparedBatch,
        time_pieces: Callable[[Iterator[MaskPiece]], Iterator[MaskPiece]] = iter,
    ) -> MaskedBatch:
        """Return ``prepared``, the images of ``batch`` in ``step``, with masks that are made when the step reads them.

        ``time_pieces`` wraps the iterator of their pieces, for example to measure how long each of them takes.
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

    def take_step(self, batch: MaskedBatch, rates: StepRates) -> Mapping[str, SupportsFloat]:
        """Train the learner on ``batch`` with ``rates``; the metrics may stay on the device."""
        masks: Any = batch.masks
        if not isinstance(self._learner, TakesMaskPieces):
            masks = masks.read_all()
        return self._learner.train_step(batch.prepared, masks, rates.lr, rates.weight_decay, rates.ema_decay)

    def _make_pieces(self, step: int, prepared: PreparedBatch, first: int, problems: list[str]) -> Iterator[MaskPiece]:
        """Yield the masks of ``prepared``, whose first image is in row ``first`` of the batch of all processes.

        If weights are not finite, no masks can be made from their attention. The remaining images of this process then
        get random masks, and ``problems`` a sentence. An error here could leave other processes waiting for this one;
        instead the run ends in all processes at once, when the losses are read.
        """
        progress = step / self._plan.total  # p = t / T of Eq. 14, where t counts fractional epochs
        # this and an image's row in the whole batch decide its masks, however many processes share the batch
        seed: Sequence[int] = (self._config.run.seed, step)
        masks_made = 0
        try:
            for piece in self._masker.iterate_pieces(prepared, progress, seed, first):
                yield piece
                masks_made += len(piece.masks)
        except NotFiniteAttentionError:
            problems.append("the attention that masks are made of is not finite")
            mask, _ = self._random_masker(prepared, progress, seed, first)
            yield MaskPiece(mask[masks_made:], {})
