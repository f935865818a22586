"""A masked image model in pretraining, and what it tells of a step and of pictures.

Shapes: B images of H x W pixels, N mask units, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from ehm.backends.protocol.batches import PreparedBatch
from ehm.storage.arrays import LearnerState

__all__ = ["Learner", "Reconstruction", "StepExamination"]


@dataclass(frozen=True)
class Reconstruction:
    """The predictions of a masked image model for images, each under one mask, as pictures show them.

    ``pixels`` (B, H, W, 3) float32 are the prediction everywhere, in hidden and in visible places: 0 is black and 1
    white, and values beyond are possible. They are None if there are none. ``best_pixels`` are those of a perfect
    prediction, None if that would be the image itself. ``agreement`` (B, N) float32 in [-1, 1] says how well each
    output token's prediction agrees with its target, as ``agreement_name`` explains, if the model predicts no pixels.
    ``note`` says in a sentence how the pixels came to be, or why there are none.
    """

    pixels: NDArray[np.float32] | None = None
    best_pixels: NDArray[np.float32] | None = None
    agreement: NDArray[np.float32] | None = None
    agreement_name: str = ""
    note: str = ""


@dataclass(frozen=True)
class StepExamination:
    """The numbers of a step, as :meth:`Learner.examine_step` saw them.

    ``metrics`` are those of :meth:`Learner.train_step`. ``first_output`` is the name of the module whose output was the
    first that is not finite, "" the whole model, whose output is the loss, and None if all are finite;
    ``has_finite_inputs`` says whether that module's inputs were finite. ``first_gradient`` is the parameter whose
    gradient was the first that is not finite on the way back. ``largest_outputs`` are the modules with the largest
    finite outputs and their size, largest first. ``operator`` is where a search for gradients that are no numbers
    ended, in words; None if it found nothing, or if the framework has no such search.
    """

    metrics: Mapping[str, float]
    first_output: str | None
    has_finite_inputs: bool
    first_gradient: str | None
    largest_outputs: tuple[tuple[str, float], ...]
    operator: str | None


class Learner(Protocol):
    """A masked image model in pretraining.

    ``notes`` say which weights it began with, if ``config.model.init`` names some.
    """

    notes: tuple[str, ...]

    def prepare_batch(self, images: NDArray[np.uint8]) -> PreparedBatch:
        """Begin a step on this process's images (B, H, W, 3) of a batch."""
        ...

    def train_step(
        self, batch: Any, mask: Any, lr: float, weight_decay: float, ema_decay: float | None = None
    ) -> Mapping[str, SupportsFloat]:
        """Take one optimiser step with masks (B * views, N), True = masked, equally many in each.

        ``ema_decay`` is the decay of the moving average in this step, None the last one of ``config.optim.ema_decay``.

        ``batch`` comes from :meth:`prepare_batch`; ``mask`` is a NumPy array, or comes from :class:`MasksOnDevice`, or
        is a :class:`ehm.masking.BatchMasks` if the learner is one that :class:`TakesMaskPieces`. The values returned
        are means over all processes and stay on the device until ``float()`` reads them; ``loss`` and ``grad_norm``,
        the length of the gradient before it is clipped, are always among them.
        """
        ...

    def examine_step(
        self, batch: Any, mask: Any, lr: float, weight_decay: float, ema_decay: float | None = None
    ) -> StepExamination:
        """Take the step of :meth:`train_step`, slowly, and return where its numbers stop being finite.

        One process takes it alone. The state afterwards is of no use.
        """
        ...

    def reconstruct_images(self, images: NDArray[np.uint8], mask: NDArray[np.bool_]) -> Reconstruction:
        """Predict what masks (B, N of the mask units), True = masked, hide of images (B, H, W, 3).

        In evaluation mode, without gradient, and in the type of the run. Nothing that a later step depends on changes.
        Every process calls this, as several may share the parameters; each may have images of its own.
        """
        ...

    def compute_features(self, images: NDArray[np.uint8], average: bool = False) -> NDArray[np.float32]:
        """Pool the patch tokens of whole images behind the last norm: (B, H, W, 3) -> (B, D); changes no training.

        They are those of the trained encoder, or with ``average`` of its moving average, in evaluation mode and in the
        type of ``optim.dtype``: in float32 what :meth:`Encoder.compute_features` gives for a checkpoint of this moment.
        All processes call this equally often, each with its own images.
        """
        ...

    def state(self) -> LearnerState:
        """Return copies of all that :meth:`load` needs to continue bit for bit; called in every process."""
        ...

    def load(self, state: LearnerState) -> None:
        """Continue from ``state``; raises CheckpointError naming what is missing, surplus or of another shape."""
        ...
