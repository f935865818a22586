"""Keep the step of pretraining whose loss is not finite, with all that it was taken with.

The loss is read only for a line of the log, because reading it makes the host wait for the device; by then the weights
that gave it are gone. A run's steps are the same ones whenever they are taken from the same checkpoint. So the run goes
back to the newest one, takes the steps up to the broken one again, and keeps what that one is about to be taken with.
As long as nothing breaks this costs nothing and changes nothing; then it costs one interval of checkpoints at most.
"""

from __future__ import annotations

import gc
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import ALONE
from ehm.config import TrainConfig
from ehm.console import console
from ehm.data import Batch
from ehm.errors import NotFiniteError
from ehm.masking.pieces import copy_to_host
from ehm.models.weights import Weights
from ehm.progress_bar import track
from ehm.storage.arrays import LearnerState
from ehm.storage.broken_step import save_broken_step
from ehm.storage.checkpoint import checkpoint_path, newest_checkpoint, open_to_resume
from ehm.training.plan import RunPlan, plan_run
from ehm.training.pretraining_setup import choose_first_weights, create_masker, open_images
from ehm.training.run import Run
from ehm.training.steps import MaskedBatch, MaskedSteps

__all__ = ["keep_broken_step"]

FOLDER = "broken"
"""The folder of a run that broken steps are kept in."""


@dataclass(frozen=True)
class _ReachedStep:
    """A step that is about to be taken: its ``number``, counted from 0, and what it is taken with."""

    number: int
    plan: RunPlan
    steps: MaskedSteps
    state: LearnerState
    batch: Batch
    masked: MaskedBatch


def keep_broken_step(run: Run[TrainConfig], weights: Weights | None, error: NotFiniteError) -> NotFiniteError:
    """Keep the step that ``error`` names, and return the error with what has become of it; all processes call this.

    ``weights`` are those that the run began with, if there are any.
    """
    try:
        outcome = _take_again_and_keep(run, weights, error)
    except Exception as failure:  # whatever it is, what the user has to learn is that the loss is not finite
        outcome = f"what led to it could not be kept: {failure}"
    return NotFiniteError(error.step, f"{error.problem}; {outcome}", error.remedy)


def _take_again_and_keep(run: Run[TrainConfig], weights: Weights | None, error: NotFiniteError) -> str:
    """Keep the step that ``error`` names, and return in words where it lies and how to go on."""
    # the learner of the run that broke may still lie on the device, as modules refer to each other
    gc.collect()
    newest = newest_checkpoint(run.folder / "checkpoints")
    run = replace(run, start=None if newest is None else open_to_resume(newest))
    beginning = "the first weights" if newest is None else newest.name
    console.print(f"Not finite: {error.problem}.")
    console.print(
        f"  going back to {beginning}, to take the steps up to step {error.step} again and keep what led to it"
    )
    reached = _reach_step(run, weights, error.step - 1)

    own_mask = copy_to_host(reached.masked.masks.read_all())
    rates = reached.steps.rates_at(reached.number)
    metrics = reached.steps.take(reached.masked, rates)
    loss = float(metrics["loss"])
    grad_norm = float(metrics.get("grad_norm", 0.0))
    # each process has the masks of its own rows
    mask = np.concatenate(run.processes.gather_values(own_mask))
    # nothing below this line makes processes wait for each other, so that the first one may fail to write
    if run.is_main_process:
        images, indices = _read_whole_batch(run, reached, len(mask) // run.config.mask.views)
        facts = {
            "step": error.step,
            "problem": error.problem,
            "loss": repr(loss),
            "grad_norm": repr(grad_norm),
            "masks": reached.masked.problems[0] if reached.masked.problems else run.config.masking,
            "rates": rates.to_json(),
            "processes": run.processes.size,
        }
        metadata = run.make_metadata("pretrain", reached.number, reached.plan)
        save_broken_step(run.folder / FOLDER, reached.state, metadata, images, indices, mask, facts)

    folder = checkpoint_path(run.folder / FOLDER, error.step)
    outcome = f"the step is kept in {folder}, and `ehm train --replay {folder}` says where its numbers break"
    if not reached.masked.problems and math.isfinite(loss) and math.isfinite(grad_norm):
        outcome += (
            f"; but taken again just now it was finite, with the loss {loss:.4g}: kernels of this device differ from "
            "time to time, which run.deterministic=true prevents, or the device is faulty"
        )
    return outcome


def _reach_step(run: Run[TrainConfig], weights: Weights | None, number: int) -> _ReachedStep:
    """Take the steps of ``run`` from its checkpoint, or its first weights, up to the one of ``number``."""
    _, loader = open_images(run.config, run.processes)
    plan = plan_run(run.config.optim, run.config.run, loader.steps_per_epoch)
    learner = run.backend.create_learner(choose_first_weights(run), weights)
    first = 0
    if run.start is not None:
        learner.load(run.start.take_state())
        first = int(run.start.metadata["step"])
    steps = MaskedSteps(run.config, plan, learner, create_masker(run))
    with loader:
        batches = steps.prepare_ahead(loader.batches(first, number + 1))
        shown = track(batches, "again", number + 1 - first, transient=True)
        for step, (batch, prepared) in enumerate(shown, start=first):
            masked = steps.mask_batch(step, batch, prepared)
            if step < number:
                steps.take(masked, steps.rates_at(step))
    return _ReachedStep(number, plan, steps, learner.state(), batch, masked)


def _read_whole_batch(
    run: Run[TrainConfig], reached: _ReachedStep, rows: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the ``rows`` images of all processes in a step, and their indices."""
    batch = reached.batch
    if run.processes.size > 1:
        # by this process alone: the images of a step are the same whoever reads them, and need not travel
        here = run.config.data.model_copy(update={"workers": 0})
        _, loader = open_images(run.config.model_copy(update={"data": here}), ALONE)
        with loader:
            batch = next(loader.batches(reached.number, reached.number + 1))
    return batch.images[:rows], batch.indices[:rows]
