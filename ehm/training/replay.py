"""``ehm train --replay``: take a step whose loss was not finite once more, and report where its numbers break."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ehm import backends
from ehm.backends.base import StepExamination
from ehm.config import TrainConfig, load_config
from ehm.console import console
from ehm.errors import ConfigError
from ehm.models.pretraining import keep_needed_weights, name_first_weights
from ehm.storage.arrays import Arrays, LearnerState
from ehm.storage.broken_step import BrokenStep, find_broken_step, read_broken_step
from ehm.training.steps import StepRates

__all__ = ["replay_step"]

_FLOAT16_LIMIT = 65504.0
"""The largest finite number of float16."""
_LARGE_ACTIVATION = 1e4
"""Outputs above this are far larger than those of a network that learns."""
_LARGE_WEIGHT = 100.0
"""Weights above this are far larger than those of a network that learns."""
_SHOWN_ARRAYS = 3
"""Names of arrays in a sentence, at most."""


def replay_step(path: str | Path, device: str = "auto", overrides: Sequence[str] = ()) -> tuple[BrokenStep, float]:
    """Take the step that a run has kept at ``path`` again, print a report, and return the step and its loss now.

    ``overrides`` are ``key=value`` strings, to try other settings; the learning rate stays that of the step. One
    process takes the whole batch. Raises CheckpointError if there is no such step.
    """
    folder = find_broken_step(Path(path))
    kept = read_broken_step(folder)
    config = _prepare_config(kept, overrides)
    backend = backends.get(device, config.run.deterministic)
    if backend.processes.size > 1:
        raise ConfigError("--replay: one process takes the step again; start it without torchrun or msrun")
    weights = None
    if config.model.init is not None:  # a frozen teacher, which checkpoints do not hold
        weights = backend.open_weights(name_first_weights(config))
    # read before the learner loads it, and may change these arrays: the report is on the weights before the step
    state = kept.before.state
    learner = backend.create_learner(config, weights)
    learner.load(state)
    rates = StepRates(**kept.facts["rates"])
    console.print(
        f"Replaying step {kept.facts['step']} of {folder}: {len(kept.images)} images, learning rate {rates.lr:.3g}, on "
        f"{backend.describe_device().name}"
    )
    batch = learner.prepare_batch(kept.images)
    found = learner.examine_step(batch, kept.mask, rates.lr, rates.weight_decay, rates.ema_decay)
    for line in _write_report(kept, state, found, config):
        console.print(line)
    return kept, found.metrics["loss"]


def _prepare_config(kept: BrokenStep, overrides: Sequence[str]) -> TrainConfig:
    """Return the configuration of the run, changed so that one process can take and examine its step."""
    config = keep_needed_weights(load_config(TrainConfig, kept.before.metadata["config"], overrides))
    # this process has the images of all processes, and passes as many at once through its device as each of them did
    optim = config.optim.model_copy(update={"accumulate": config.optim.accumulate * int(kept.facts["processes"])})
    # without compilation, because the step is examined by hooks, which compiled code does not call
    run = config.run.model_copy(update={"compile": False, "parallel": "ddp"})
    return config.model_copy(update={"optim": optim, "run": run})


def _write_report(kept: BrokenStep, state: LearnerState, found: StepExamination, config: TrainConfig) -> Iterator[str]:
    """Yield the lines of the report."""
    loss = found.metrics["loss"]
    norm = found.metrics["grad_norm"]
    yield f"  loss {loss:.6g} (in the run {kept.facts['loss']}), gradient norm {norm:.4g}"
    broken_before = _find_not_finite(state.model) + _find_not_finite(state.optimizer)
    name, weight = _find_largest(state.model)
    if broken_before:
        yield f"  before the step these were not finite already: {_list_some(broken_before)}"
    else:
        yield f"  before the step all weights and moments were finite; the largest weight was {weight:.4g}, of {name}"
    yield f"  images {', '.join(map(str, kept.indices[:8]))}{', …' if len(kept.indices) > 8 else ''} of the source"
    yield from _locate_problem(found)
    largest = ", ".join(f"{value:.3g} of {module or 'the loss'}" for module, value in found.largest_outputs)
    if largest:
        yield f"  largest finite outputs: {largest}"
    if found.operator is not None:
        yield f"  anomaly detection stops at the gradient of {found.operator}"
    yield f"What to try: {_suggest_remedies(found, bool(broken_before), weight, config)}."


def _locate_problem(found: StepExamination) -> Iterator[str]:
    """Yield sentences on where numbers stop being finite.

    The forward pass comes first, because an output that is not finite spoils all gradients.
    """
    if found.first_output is not None:
        module = f"module {found.first_output}" if found.first_output else "the model as a whole, its loss"
        inputs = "finite inputs" if found.has_finite_inputs else "inputs that were not finite either"
        yield f"  first not finite: the output of {module}, from {inputs}"
    elif found.first_gradient is None:
        yield "  the outputs of all modules and the gradients of all parameters are finite"
    if found.first_gradient is not None:
        yield f"  first gradient that is not finite: that of {found.first_gradient}"


def _suggest_remedies(found: StepExamination, was_broken: bool, weight: float, config: TrainConfig) -> str:
    """Return the remedies that may help, the most likely one first."""
    loss = found.metrics["loss"]
    norm = found.metrics["grad_norm"]
    if math.isfinite(loss) and math.isfinite(norm) and not was_broken:
        return (
            "the step is finite here; if you changed settings, they help; if you changed nothing, or only the device, "
            "look for a faulty device, and set run.deterministic=true"
        )
    advice = []
    if was_broken:
        advice.append(
            "the step is not to blame: look at the weights of model.init, or resume from an earlier checkpoint, moving "
            "the newer ones away"
        )
    largest = max((value for _, value in found.largest_outputs), default=0.0)
    if config.optim.dtype == "float16":
        advice.append(f"optim.dtype=bfloat16 or float32, as float16 ends at {_FLOAT16_LIMIT:,.0f}")
    elif config.optim.dtype != "float32" and not was_broken:
        advice.append("whether optim.dtype=float32 is finite: add --set optim.dtype=float32 to this command")
    if weight > _LARGE_WEIGHT or largest > _LARGE_ACTIVATION:
        advice.append("the network has grown too large: a lower optim.base_lr, a longer warm-up, or optim.clip_grad=1")
    elif not was_broken:
        advice.append("a lower optim.base_lr, optim.clip_grad=1, or other images than these")
    return "; ".join(advice)


def _find_not_finite(arrays: Arrays) -> list[str]:
    return [name for name, array in arrays.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]


def _find_largest(arrays: Arrays) -> tuple[str, float]:
    """Return the name of the array with the largest finite number, by absolute value, and that value."""
    largest: tuple[str, float] = ("none", 0.0)
    for name, array in arrays.items():
        values = np.abs(array[np.isfinite(array)]) if array.dtype.kind == "f" else np.zeros(0)
        if values.size and values.max() > largest[1]:
            largest = (name, float(values.max()))
    return largest


def _list_some(names: Sequence[Any]) -> str:
    more = f" and {len(names) - _SHOWN_ARRAYS} more" if len(names) > _SHOWN_ARRAYS else ""
    return ", ".join(names[:_SHOWN_ARRAYS]) + more
