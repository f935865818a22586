"""The numerics of a device: attention, losses and gradients beside NumPy's float64, and beside the CPU's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import Backend, Learner
from ehm.config import TrainConfig
from ehm.reference.layers import Floats, widen
from ehm.reference.objectives import Reference
from ehm.storage.arrays import Arrays
from ehm.storage.checkpoint import open_checkpoint
from ehm.verification.cases import Case, create_learner, draw_images, draw_masks, load_weights
from ehm.verification.check import Measurement
from ehm.verification.gradients import (
    TOLERANCES,
    compare_gradients,
    compare_loss_with_numpy,
    read_gradients,
    relative_error,
)

__all__ = ["compare_with_cpu", "compare_with_numpy"]

_LR = 1e-3
_MOST_SKIPPED = 24
"""Steps that float16 may leave out at first, until its loss scale has fallen to where gradients are finite."""


@dataclass(frozen=True)
class _Answers:
    similarity: NDArray[np.float32]
    saliency: NDArray[np.float32] | None
    loss: float
    gradients: Arrays


def compare_with_numpy(backend: Backend, case: Case) -> Iterator[Measurement]:
    """Compare similarity, saliency, loss and gradients of a case on ``backend`` with NumPy's in float64."""
    config = case.make_config()
    learner = create_learner(backend, config)
    weights = load_weights(learner)
    answers = _ask_learner(learner, config)
    tolerances = TOLERANCES[case.dtype]

    reference = _make_reference(config, case, weights)
    exact = widen(weights)
    similarity = reference.compute_similarity(exact)
    yield Measurement("attention", relative_error(answers.similarity, similarity), tolerances.similarity, "NumPy")
    if answers.saliency is not None:
        saliency = reference.compute_saliency(exact)
        error = relative_error(answers.saliency, saliency)
        yield Measurement("class token's attention", error, tolerances.similarity, "NumPy")
    targets = reference.find_targets()

    def compute_loss(moved: Mapping[str, Floats]) -> float:
        return reference.compute_loss(moved, targets)

    yield from compare_loss_with_numpy(compute_loss, exact, answers.loss, answers.gradients, tolerances)


def compare_with_cpu(backend: Backend, cpu: Backend, case: Case) -> Iterator[Measurement]:
    """Compare similarity, loss and each entry of the gradients of a case on two devices, from the same weights."""
    config = case.make_config()
    learner = create_learner(backend, config)
    weights = load_weights(learner)
    answers = _ask_learner(learner, config)
    other = create_learner(cpu, config)
    load_weights(other, weights)
    expected = _ask_learner(other, config)
    tolerances = TOLERANCES[case.dtype]
    error = relative_error(answers.similarity, expected.similarity)
    yield Measurement("attention", error, tolerances.similarity, cpu.name)
    error = abs(answers.loss - expected.loss) / abs(expected.loss)
    yield Measurement("loss", error, tolerances.loss, cpu.name)
    worst, largest = compare_gradients(answers.gradients, expected.gradients)
    yield Measurement("gradients", largest, tolerances.gradient, f"{cpu.name}; {worst} differs most")


def _ask_learner(learner: Learner, config: TrainConfig) -> _Answers:
    images = draw_images(config)
    similarity = np.concatenate(list(learner.prepare_batch(images).compute_similarity()))
    saliency = None
    if config.spec.has_class_token:
        saliency = np.concatenate(list(learner.prepare_batch(images).compute_saliency()))
    for attempt in count():
        metrics = learner.train_step(learner.prepare_batch(images), draw_masks(config), _LR, 0.0)
        gradients = read_gradients(learner.state().optimizer, config.optim.betas)
        # of a step that float16 leaves out nothing remains but a smaller loss scale
        if any(np.any(value) for value in gradients.values()):
            break
        if attempt == _MOST_SKIPPED:
            raise ValueError(f"the optimiser has no moments after {attempt + 1} steps")
    return _Answers(similarity, saliency, float(metrics["loss"]), gradients)


def _make_reference(config: TrainConfig, case: Case, weights: Arrays) -> Reference:
    tokenizer = None
    if config.objective == "beit":
        assert case.tokenizer is not None
        tokenizer = widen(open_checkpoint(case.tokenizer).model)
    return Reference(config, draw_images(config), draw_masks(config), widen(weights), tokenizer)
