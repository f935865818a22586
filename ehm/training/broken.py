"""Keep a pretraining step whose loss is not finite: the weights before it, its images and its masks.

Losses are read only for lines of the log, because reading them makes the host wait for the device; by then the weights
before the broken step are gone. But steps that are taken again from the same checkpoint are the same steps. So the run
goes back to its newest checkpoint, repeats the steps up to the broken one, and keeps all that this one needs. While all
losses are finite this costs nothing; afterwards it costs one interval between checkpoints at most.
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
"""The folder for broken steps in the folder of a run."""


@dataclass(frozen=True)
class _ReachedStep:
    """The broken step before it is taken: its ``number``, counted from 0, and all that it needs."""

    number: int
    plan: RunPlan
    steps: MaskedSteps
    state: LearnerState
    batch: Batch
    masked: MaskedBatch


def keep_broken_step(run: Run[TrainConfig], weights: Weights | None, error: NotFiniteError) -> NotFiniteError:
    """Keep the step that ``error`` is about; return the error with a sentence on where the step is kept.

    ``weights`` are the first weights of the run, if it began with any. All processes call this.
    """
    try:
        outcome = _repeat_and_keep(run, weights, error)
    except Exception as failure:  # a failure to keep the step must not hide the error that the user has to learn of
        outcome = f"what led to it could not be kept: {failure}"
    return NotFiniteError(error.step, f"{error.problem}; {outcome}", error.remedy)


def _repeat_and_keep(run: Run[TrainConfig], weights: Weights | None, error: NotFiniteError) -> str:
    """Take the steps up to the one of ``error`` again, keep that, and return where it is kept and how to replay it."""
    # frees the memory of the learner that broke: its modules refer to each other, which delays that
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
    metrics = reached.steps.take_step(reached.masked, rates)
    loss = float(metrics["loss"])
    grad_norm = float(metrics.get("grad_norm", 0.0))
    # each process has the masks of its own images
    mask = np.concatenate(run.processes.gather_values(own_mask))
    facts = {
        "step": error.step,
        "problem": error.problem,
        "loss": repr(loss),
        "grad_norm": repr(grad_norm),
        "masks": reached.masked.problems[0] if reached.masked.problems else run.config.masking,
        "rates": rates.to_json(),
        "processes": run.processes.size,
    }
    # from here on no process waits for another, so that the main process may fail to write
    if run.is_main_process:
        images, indices = _read_whole_batch(run, reached, len(mask) // run.config.mask.views)
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
    """Take the steps of ``run`` from its checkpoint, or its first weights, until step ``number`` is the next one."""
    _, loader = open_images(run.config, run.processes)
    plan = plan_run(run.config.optim, run.config.run, loader.steps_per_epoch)
    learner = run.backend.create_learner(choose_first_weights(run), weights)
    if run.start is not None:
        learner.load(run.start.take_state())
    steps = MaskedSteps(run.config, plan, learner, create_masker(run))
    with loader:
        batches = steps.prepare_ahead(loader.batches(run.first_step, number + 1))
        shown = track(batches, "again", number + 1 - run.first_step, transient=True)
        for step, (batch, prepared) in enumerate(shown, start=run.first_step):
            masked = steps.mask_batch(step, batch, prepared)
            if step < number:
                steps.take_step(masked, steps.rates_at(step))
    return _ReachedStep(number, plan, steps, learner.state(), batch, masked)


def _read_whole_batch(
    run: Run[TrainConfig], reached: _ReachedStep, rows: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the ``rows`` images of a step over all processes, and their indices."""
    batch = reached.batch
    if run.processes.size > 1:
        # read again by this process alone: the images of a step are the same ones, and need not be sent
        here = run.config.data.model_copy(update={"workers": 0})
        _, loader = open_images(run.config.model_copy(update={"data": here}), ALONE)
        with loader:
            batch = next(loader.batches(reached.number, reached.number + 1))
    return batch.images[:rows], batch.indices[:rows]
