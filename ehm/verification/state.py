"""The state of a run: resuming bit for bit, and a checkpoint that goes to the CPU and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ehm import backends
from ehm.backends.base import Backend, Learner
from ehm.config import TrainConfig
from ehm.storage.arrays import Arrays, LearnerState
from ehm.storage.checkpoint import open_checkpoint, save_checkpoint
from ehm.verification.cases import Case, create_learner, describe_run, draw_images, draw_masks, load_weights
from ehm.verification.check import Measurement, SkipError
from ehm.verification.child import ask_in_child

__all__ = ["check_checkpoint", "check_crossing", "check_resume", "check_resume_in_child", "count_different_bits"]

_CASE = Case("plain ViT, MAE", 65, 32)
_AVERAGE = {"ema_decay": 0.9}
"""A moving average of the weights, so that it is part of the state too."""
_STEPS = 3
_ASK = """
import json, sys
from ehm.verification.state import list_resume_measurements
print(json.dumps(list_resume_measurements(sys.argv[1])))
"""


def check_resume(backend: Backend, deterministic: bool) -> Iterator[Measurement]:
    """Compare steps after loading a state with the steps of a learner that went on, bit for bit.

    Raises SkipError if the device does not even repeat its own steps; only ``run.deterministic`` has to prevent that.
    """
    config = _CASE.make_config(run={"deterministic": deterministic}, optim={**_AVERAGE, "accumulate": 2})
    learner = create_learner(backend, config)
    load_weights(learner)
    _take_steps(learner, config, 0)
    state = _copy_state(learner.state())
    _take_steps(learner, config, _STEPS)
    stayed = learner.state()

    resumed = create_learner(backend, config)
    resumed.load(_copy_state(state))
    _take_steps(resumed, config, _STEPS)
    different = count_different_bits(stayed, resumed.state())
    if different and not deterministic:
        again = create_learner(backend, config)
        again.load(_copy_state(state))
        _take_steps(again, config, _STEPS)
        if count_different_bits(again.state(), resumed.state()):
            raise SkipError("the device does not repeat its own steps bit for bit without run.deterministic")
    yield Measurement("", different, 0, "arrays of the state that differ after three more steps")


def check_resume_in_child(device: str) -> Iterator[Measurement]:
    """Run :func:`check_resume` with ``run.deterministic`` in a process of its own.

    Deterministic kernels have to be chosen before a device is used.
    """
    for values in ask_in_child(_ASK, device):
        yield Measurement(**values)


def list_resume_measurements(device: str) -> list[dict[str, Any]]:
    """Return the measurements of :func:`check_resume` as plain JSON; to be called in a child."""
    return [asdict(measurement) for measurement in check_resume(backends.get(device), deterministic=True)]


def check_checkpoint(backend: Backend) -> Iterator[Measurement]:
    """Compare a state with what a checkpoint's files, and a learner that loads them, make of it, bit for bit."""
    config = _CASE.make_config(optim=_AVERAGE)
    learner = create_learner(backend, config)
    load_weights(learner)
    _take_steps(learner, config, 0)
    state = _copy_state(learner.state())
    resumed = create_learner(backend, config)
    with TemporaryDirectory() as folder:
        resumed.load(_store(state, config, Path(folder)))
    yield Measurement("", count_different_bits(state, resumed.state()), 0, "arrays that differ")


def check_crossing(backend: Backend, cpu: Backend) -> Iterator[Measurement]:
    """Take a run to the CPU and back by checkpoints, and compare its losses with those of one that stayed."""
    config = _CASE.make_config(optim=_AVERAGE)
    learner = create_learner(backend, config)
    load_weights(learner)
    _take_steps(learner, config, 0)
    state = _copy_state(learner.state())
    expected = _take_steps(learner, config, _STEPS) + _take_steps(learner, config, 2 * _STEPS)

    losses = []
    with TemporaryDirectory() as folder:
        for number, place in enumerate((cpu, backend), start=1):
            crossed = create_learner(place, config)
            crossed.load(_store(state, config, Path(folder) / str(number)))
            losses += _take_steps(crossed, config, number * _STEPS)
            state = crossed.state()
    error = float(np.max(np.abs(np.subtract(losses, expected)) / np.abs(expected)))
    yield Measurement("losses", error, 1e-3, f"{cpu.name} and back, beside a run that stayed")


def count_different_bits(left: LearnerState, right: LearnerState) -> int:
    """Count the arrays of two states that are not the same bit for bit, or that only one of them has."""
    different = 0
    for ours, theirs in ((left.model, right.model), (left.optimizer, right.optimizer)):
        different += len(ours.keys() ^ theirs.keys())
        for name in ours.keys() & theirs.keys():
            same_type = ours[name].dtype == theirs[name].dtype and ours[name].shape == theirs[name].shape
            different += int(not same_type or ours[name].tobytes() != theirs[name].tobytes())
    return different


def _take_steps(learner: Learner, config: TrainConfig, first: int) -> list[float]:
    """Take steps number ``first`` and following; return their losses."""
    losses = []
    for step in range(first, first + _STEPS):
        batch = learner.prepare_batch(draw_images(config, seed=step))
        metrics = learner.train_step(batch, draw_masks(config, seed=step), 1e-3, 0.05)
        losses.append(float(metrics["loss"]))
    return losses


def _store(state: LearnerState, config: TrainConfig, folder: Path) -> LearnerState:
    """Write a state as a checkpoint and return what its files hold."""
    return open_checkpoint(save_checkpoint(folder, state, describe_run(config))).state


def _copy_state(state: LearnerState) -> LearnerState:
    """Copy a state, so that no later step can change it."""

    def copy(arrays: Arrays) -> Arrays:
        return {name: array.copy() for name, array in arrays.items()}

    return LearnerState(copy(state.model), copy(state.optimizer))
