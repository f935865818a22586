"""Losses and gradients of a step of each task: beside NumPy's float64, and beside the CPU's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from ehm.backends.base import Backend
from ehm.storage.arrays import Arrays
from ehm.verification.check import Measurement
from ehm.verification.dense_steps import prepare_detector, prepare_segmenter, prepare_tokenizer
from ehm.verification.gradients import (
    TOLERANCES,
    Tolerances,
    compare_gradients,
    compare_loss_with_numpy,
    read_gradients,
)
from ehm.verification.small_tasks import Step
from ehm.verification.vector_steps import prepare_classifier, prepare_embedder, prepare_updates

__all__ = ["STEPS", "compare_step_with_cpu", "compare_step_with_numpy"]

STEPS: dict[str, Callable[[Backend], Step]] = {
    "classification by labels": partial(prepare_classifier, "labels"),
    "classification by smoothed labels": partial(prepare_classifier, "smoothed"),
    "classification of mixed images": partial(prepare_classifier, "mixed"),
    "classification by low-rank updates (LoRA)": prepare_updates,
    "retrieval by ArcFace": prepare_embedder,
    "segmentation by UperNet": prepare_segmenter,
    "detection by Mask R-CNN": prepare_detector,
    "tokenizer, certain codes": partial(prepare_tokenizer, True),
    "tokenizer, mixed codes": partial(prepare_tokenizer, False),
}
"""The steps by their names, and functions that prepare them for a backend."""
_ROUNDING = Tolerances(similarity=0.0, loss=0.02, slope=0.1, gradient=0.3)
"""Tolerances of devices whose convolutions round float32 to TF32 or HF32, as GPUs and NPUs do if nobody tells them not
to: about four times what that makes of these steps on a CPU. A rounding may let another proposal take part, too."""


def compare_step_with_numpy(backend: Backend, name: str) -> Iterator[Measurement]:
    """Compare the loss and the gradients of all that learns with those of NumPy's network."""
    step = STEPS[name](backend)
    loss, gradients = _take_step(step)
    yield from compare_loss_with_numpy(step.compute_loss, step.weights, loss, gradients, _choose_tolerances(backend))


def compare_step_with_cpu(backend: Backend, cpu: Backend, name: str) -> Iterator[Measurement]:
    """Compare the loss and each entry of the gradients with those of the CPU."""
    prepare = STEPS[name]
    step = prepare(backend)
    loss, gradients = _take_step(step)
    expected_loss, expected = _take_step(prepare(cpu))
    tolerances = _choose_tolerances(backend)
    yield Measurement("loss", abs(loss - expected_loss) / abs(expected_loss), tolerances.loss, cpu.name)
    worst, error = compare_gradients(gradients, expected)
    yield Measurement("gradients", error, tolerances.gradient, f"{cpu.name}; {worst} differs most")


def _take_step(step: Step) -> tuple[float, Arrays]:
    loss = float(step.take()["loss"])
    return loss, read_gradients(step.learner.state().optimizer, step.betas)


def _choose_tolerances(backend: Backend) -> Tolerances:
    return TOLERANCES["float32"] if backend.name == "cpu" else _ROUNDING
