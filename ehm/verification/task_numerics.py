"""Losses and gradients of a step of each task: beside NumPy's float64, and beside the CPU's."""

from __future__ import annotations

from collections.abc import Iterator

from ehm.backends.base import Backend
from ehm.storage.arrays import Arrays
from ehm.verification.check import Measurement
from ehm.verification.gradients import (
    TOLERANCES,
    Tolerances,
    compare_gradients,
    compare_loss_with_numpy,
    read_gradients,
)
from ehm.verification.task_steps import STEPS, Step

__all__ = ["compare_step_with_cpu", "compare_step_with_numpy"]

_DISCRETE = Tolerances(similarity=0.0, loss=0.02, slope=0.1, gradient=0.2)
"""Tolerances of steps in which a rounding of a device may let one sample more or less take part."""


def compare_step_with_numpy(backend: Backend, name: str) -> Iterator[Measurement]:
    """Compare the loss and the gradients of all that learns with those of NumPy's network."""
    step = STEPS[name](backend)
    loss, gradients = _take_step(step)
    yield from compare_loss_with_numpy(step.compute_loss, step.weights, loss, gradients, _choose_tolerances(step))


def compare_step_with_cpu(backend: Backend, cpu: Backend, name: str) -> Iterator[Measurement]:
    """Compare the loss and each entry of the gradients with those of the CPU."""
    prepare = STEPS[name]
    step = prepare(backend)
    loss, gradients = _take_step(step)
    expected_loss, expected = _take_step(prepare(cpu))
    tolerances = _choose_tolerances(step)
    yield Measurement("loss", abs(loss - expected_loss) / abs(expected_loss), tolerances.loss, cpu.name)
    worst, error = compare_gradients(gradients, expected)
    yield Measurement("gradients", error, tolerances.gradient, f"{cpu.name}; {worst} differs most")


def _take_step(step: Step) -> tuple[float, Arrays]:
    loss = float(step.take()["loss"])
    return loss, read_gradients(step.learner.state().optimizer, step.betas)


def _choose_tolerances(step: Step) -> Tolerances:
    return _DISCRETE if step.is_discrete else TOLERANCES["float32"]
