"""The numerics of a device: attention, losses and gradients beside NumPy's float64, and beside the CPU's.

A gradient needs no method of its own: after AdamW's first step, its first moment is (1 - beta1) times the gradient.
NumPy has no gradients, but the slope of its loss along a direction, by a central difference. The direction is the
gradient to be checked and a random one, both of length 1: their sum finds a wrong length and a wrong direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import Backend, Learner
from ehm.backends.common import is_decayed
from ehm.config import TrainConfig
from ehm.config.objectives import OBJECTIVES
from ehm.reference.adamw import AdamW
from ehm.reference.layers import Floats, widen
from ehm.reference.objectives import Reference
from ehm.storage.arrays import Arrays
from ehm.storage.checkpoint import open_checkpoint
from ehm.verification.cases import Case, create_learner, draw_images, draw_masks, load_weights
from ehm.verification.check import Measurement

__all__ = ["TOLERANCES", "Tolerances", "compare_with_cpu", "compare_with_numpy", "follow_adamw", "read_gradients"]

_LR = 1e-3
_STEP = 1e-7
"""Half of the width of a central difference, as a share of a parameter's length.

Wider ones meet the corners of losses that are magnitudes.
"""
_SMALLEST = 1e-3
"""Share of the length of all gradients together below which a parameter's own is not told from rounding."""
_MOST_SKIPPED = 24
"""Steps that float16 may leave out at first, until its loss scale has fallen to where gradients are finite."""


@dataclass(frozen=True)
class Tolerances:
    """The largest relative errors that rounding explains, about ten times those of a CPU."""

    similarity: float
    loss: float
    slope: float
    gradient: float


TOLERANCES = {
    "float32": Tolerances(1e-3, 1e-4, 2e-3, 1e-2),
    "bfloat16": Tolerances(0.15, 0.03, 0.2, 0.5),
    "float16": Tolerances(0.05, 0.01, 0.05, 0.2),
}
"""Tolerances by the type of a step.

Those of float32 admit kernels that multiply in TF32 or HF32, whose products are off by about 5e-4.
"""


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
    yield Measurement("attention", _relative_error(answers.similarity, similarity), tolerances.similarity, "NumPy")
    if answers.saliency is not None:
        saliency = reference.compute_saliency(exact)
        error = _relative_error(answers.saliency, saliency)
        yield Measurement("class token's attention", error, tolerances.similarity, "NumPy")
    targets = reference.find_targets()
    loss = reference.compute_loss(exact, targets)
    yield Measurement("loss", abs(answers.loss - loss) / abs(loss), tolerances.loss, "NumPy")

    def compute_loss(moved: Mapping[str, Floats]) -> float:
        return reference.compute_loss(moved, targets)

    name, error = _compare_slopes(compute_loss, exact, answers.gradients)
    yield Measurement("gradients", error, tolerances.slope, f"NumPy; {name} differs most")


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
    error = _relative_error(answers.similarity, expected.similarity)
    yield Measurement("attention", error, tolerances.similarity, cpu.name)
    error = abs(answers.loss - expected.loss) / abs(expected.loss)
    yield Measurement("loss", error, tolerances.loss, cpu.name)
    if answers.gradients.keys() != expected.gradients.keys():
        missing = sorted(answers.gradients.keys() ^ expected.gradients.keys())
        raise ValueError(f"only one of the devices has gradients of {', '.join(missing[:3])}")
    worst, largest = "", 0.0
    total = max(float(np.abs(value).max()) for value in expected.gradients.values())
    for name, value in expected.gradients.items():
        size = max(float(np.abs(value).max()), _SMALLEST * total)
        error = float(np.abs(answers.gradients[name] - value).max()) / size
        if not error <= largest:
            worst, largest = name, error
    yield Measurement("gradients", largest, tolerances.gradient, f"{cpu.name}; {worst} differs most")


def follow_adamw(backend: Backend, case: Case, steps: int = 3) -> Iterator[Measurement]:
    """Compare weights and second moments after some steps with those that NumPy's AdamW makes of the same gradients."""
    config = case.make_config()
    learner = create_learner(backend, config)
    weights = load_weights(learner)
    images = draw_images(config)
    decay = 0.3
    followed: dict[str, AdamW] = {}
    for step in range(steps):
        mask = draw_masks(config, seed=step)
        learner.train_step(learner.prepare_batch(images), mask, _LR, decay)
        state = learner.state()
        for name, moment in _read_moments(state.optimizer, "exp_avg").items():
            if name not in followed:
                zeros = np.zeros(moment.shape)
                followed[name] = AdamW(weights[name].astype(np.float64), zeros, zeros, 0)
            own = followed[name]
            beta = config.optim.betas[0]
            gradient = (moment - beta * own.first) / (1 - beta)
            undecayed = OBJECTIVES[config.objective].undecayed
            own_decay = decay if is_decayed(name, moment.ndim, undecayed) else 0.0
            followed[name] = own.step(gradient, _LR, own_decay, config.optim.betas)
    seconds = _read_moments(state.optimizer, "exp_avg_sq")
    moved = max(_relative_error(state.model[name], own.value, weights[name]) for name, own in followed.items())
    moments = max(float(np.abs(seconds[name] - own.second).max() / own.second.max()) for name, own in followed.items())
    yield Measurement("weights", moved, 1e-2, "NumPy's AdamW; error as a share of the largest change")
    yield Measurement("second moment", moments, 1e-3, "NumPy's AdamW")


def read_gradients(optimizer: Arrays, config: TrainConfig) -> Arrays:
    """Return the gradients of the first step, by parameter, from the optimiser's arrays after it."""
    share = 1 - config.optim.betas[0]
    return {name: moment / share for name, moment in _read_moments(optimizer, "exp_avg").items()}


def _read_moments(optimizer: Arrays, slot: str) -> Arrays:
    moments = {}
    for key, value in optimizer.items():
        name, _, found = key.rpartition("/")
        if found == slot:
            moments[name] = value
    return moments


def _ask_learner(learner: Learner, config: TrainConfig) -> _Answers:
    images = draw_images(config)
    similarity = np.concatenate(list(learner.prepare_batch(images).compute_similarity()))
    saliency = None
    if config.spec.has_class_token:
        saliency = np.concatenate(list(learner.prepare_batch(images).compute_saliency()))
    for attempt in count():
        metrics = learner.train_step(learner.prepare_batch(images), draw_masks(config), _LR, 0.0)
        gradients = read_gradients(learner.state().optimizer, config)
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


def _relative_error(
    measured: NDArray[np.floating[Any]],
    expected: NDArray[np.floating[Any]],
    origin: NDArray[np.floating[Any]] | None = None,
) -> float:
    """Return the largest difference as a share of the largest distance from ``origin``, or from the mean."""
    if measured.shape != expected.shape:
        raise ValueError(f"shape {measured.shape} instead of {expected.shape}")
    start = expected.mean() if origin is None else origin.astype(np.float64)
    difference = np.abs(measured.astype(np.float64) - expected).max()
    return float(difference / np.abs(expected - start).max())


def _compare_slopes(
    compute_loss: Callable[[Mapping[str, Floats]], float], weights: Mapping[str, Floats], gradients: Arrays
) -> tuple[str, float]:
    """Return the parameter whose slope is most wrong, and its error as a share of its gradient's length.

    The slopes are those along each parameter's gradient plus a random direction.
    """
    lengths = {name: float(np.linalg.norm(value.astype(np.float64))) for name, value in gradients.items()}
    smallest = _SMALLEST * float(np.linalg.norm(list(lengths.values())))
    worst, largest = "", 0.0
    for number, (name, gradient) in enumerate(gradients.items()):
        random = np.random.default_rng([13, number]).normal(size=gradient.shape)
        direction = random / np.linalg.norm(random)
        if lengths[name] > 0:
            direction = direction + gradient / lengths[name]
        step = _STEP * max(float(np.linalg.norm(weights[name])), 1e-3)
        ahead = compute_loss({**weights, name: weights[name] + step * direction})
        behind = compute_loss({**weights, name: weights[name] - step * direction})
        slope = (ahead - behind) / (2 * step)
        error = abs(float((gradient * direction).sum()) - slope) / max(lengths[name], smallest)
        if not error <= largest:
            worst, largest = name, error
    return worst, largest
