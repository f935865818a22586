"""The optimisers of a device beside NumPy's float64: AdamW with all that surrounds it, SGD and LARS.

Models are those of the other checks. AdamW follows the gradients that its first moments tell of; the probes of SGD and
LARS are followed without anything of the device's, as the gradients of a linear layer have a formula.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import Backend
from ehm.backends.common import is_decayed
from ehm.config import FinetuneConfig, ProbeConfig
from ehm.config.objectives import OBJECTIVES
from ehm.reference.adamw import AdamW
from ehm.reference.classifier import pool_features
from ehm.reference.layers import apply_linear, widen
from ehm.reference.losses import cross_entropy_gradient
from ehm.reference.maps import apply_batch_norm
from ehm.reference.momentum import Momentum
from ehm.storage.arrays import Arrays, LearnerState, split_average
from ehm.verification.cases import Case, create_learner, draw_images, draw_masks, load_weights
from ehm.verification.check import Measurement
from ehm.verification.gradients import read_gradients, read_moments, relative_error
from ehm.verification.small_tasks import CLASSES, create_task, draw_labels

__all__ = ["OPTIMISER_CHECKS", "follow_adamw", "follow_probe"]

_CASE = Case("plain ViT, MAE", 50, 32)
_LR = 1e-3
_DECAY = 0.3
_STEPS = 3
_WEIGHTS_TOLERANCE = 1e-2
"""Largest error of a weight as a share of the largest change."""
_TOLERANCE = 1e-3
_LAYER_DECAY = 0.6
_EMA_DECAYS = (0.9, 0.5, 0.8)
"""The decay of the moving average in each step."""
_PROBE_EPSILON = 1e-6
_PROBE_LR = {"sgd": 0.1, "lars": 10.0}


def follow_adamw(backend: Backend, case: Case = _CASE) -> Iterator[Measurement]:
    """Compare weights and second moments after some steps with those that NumPy's AdamW makes of the same gradients."""
    config = case.make_config()
    learner = create_learner(backend, config)
    weights = load_weights(learner)
    images = draw_images(config)
    undecayed = OBJECTIVES[config.objective].undecayed

    def take_step(step: int) -> LearnerState:
        learner.train_step(learner.prepare_batch(images), draw_masks(config, seed=step), _LR, _DECAY)
        return learner.state()

    def find_rates(name: str, dimensions: int) -> tuple[float, float]:
        return _LR, _DECAY if is_decayed(name, dimensions, undecayed) else 0.0

    yield from _follow_steps(weights, config.optim.betas, take_step, find_rates)


def follow_layer_decay(backend: Backend) -> Iterator[Measurement]:
    """Compare steps of fine-tuning, whose rates fall from layer to layer as in BEiT and MAE, with NumPy's."""
    settings = {"optimizer": "adamw", "layer_decay": _LAYER_DECAY}
    task = create_task(backend, FinetuneConfig, settings)
    targets = np.eye(CLASSES, dtype=np.float32)[draw_labels()]
    last = task.spec.depth + 1

    def take_step(step: int) -> LearnerState:
        task.learner.train_step(task.images, targets, _LR, _DECAY)
        state: LearnerState = task.learner.state()
        return state

    def find_rates(name: str, dimensions: int) -> tuple[float, float]:
        layer = last
        if name.startswith("blocks."):
            layer = int(name.split(".")[1]) + 1
        elif name.startswith(("cls_token", "pos_embed", "patch_embed.")):
            layer = 0
        decays = is_decayed(name, dimensions, ("cls_token", "pos_embed"))
        return _LR * _LAYER_DECAY ** (last - layer), _DECAY if decays else 0.0

    yield from _follow_steps(task.weights, task.config.optim.betas, take_step, find_rates)


def check_clipping(backend: Backend) -> Iterator[Measurement]:
    """Compare the gradients of a step that is clipped with those of one that is not, and the length that is told."""
    whole, _ = _take_first_step(backend, slice(None))
    length = float(np.sqrt(sum(np.square(value.astype(np.float64)).sum() for value in whole.values())))
    clipped, told = _take_first_step(backend, slice(None), clip_grad=length / 4)
    yield Measurement("length", abs(told / length - 1), _TOLERANCE, "NumPy, of all gradients before they are clipped")
    expected = {name: value.astype(np.float64) / 4 for name, value in whole.items()}
    yield _compare_all(clipped, expected, "a quarter of the gradients of a step that is not clipped")


def check_accumulation(backend: Backend) -> Iterator[Measurement]:
    """Compare the gradients of a batch in two parts with the mean of those of its halves, in steps of their own."""
    joined, _ = _take_first_step(backend, slice(None), accumulate=2)
    first, _ = _take_first_step(backend, slice(0, 1), batch_size=1)
    second, _ = _take_first_step(backend, slice(1, 2), batch_size=1)
    expected = {name: (first[name].astype(np.float64) + second[name]) / 2 for name in first}
    yield _compare_all(joined, expected, "the mean of the gradients of both halves")


def check_average(backend: Backend) -> Iterator[Measurement]:
    """Compare the moving average with the one that NumPy makes of the weights behind each step."""
    config = _CASE.make_config(optim={"ema_decay": _EMA_DECAYS[-1]})
    learner = create_learner(backend, config)
    weights = load_weights(learner)
    expected = widen(weights)
    for step, decay in enumerate(_EMA_DECAYS):
        images = draw_images(config, seed=step)
        learner.train_step(learner.prepare_batch(images), draw_masks(config, seed=step), _LR, _DECAY, decay)
        state = learner.state()
        for name, value in expected.items():
            expected[name] = decay * value + (1 - decay) * state.model[name].astype(np.float64)
    _, average = split_average(state.optimizer)
    errors = []
    for name, value in expected.items():
        if np.any(state.model[name] != weights[name]):  # positions that are fixed do not move
            errors.append(relative_error(average[name], value, weights[name]))
    yield Measurement("weights", float(np.max(errors)), _WEIGHTS_TOLERANCE, "NumPy; as a share of the largest change")


def follow_probe(backend: Backend, optimizer: str) -> Iterator[Measurement]:
    """Compare the head after some steps of a linear probe with NumPy's, which takes all of them by itself."""
    task = create_task(backend, ProbeConfig, {"optimizer": optimizer})
    targets = np.eye(CLASSES, dtype=np.float32)[draw_labels()]
    features = pool_features(task.spec, widen(task.weights), task.pixels, "token")
    inputs = apply_batch_norm({}, "", features, _PROBE_EPSILON)
    head: dict[str, Momentum] = {}
    for part in ("weight", "bias"):
        value = task.weights[f"head.1.{part}"].astype(np.float64)
        head[part] = Momentum(value, adapts=optimizer == "lars")
    lr = _PROBE_LR[optimizer]
    for _ in range(_STEPS):
        task.learner.train_step(task.images, targets, lr, _DECAY)
        logits = apply_linear({f"head.{part}": own.value for part, own in head.items()}, "head", inputs)
        gradient = cross_entropy_gradient(logits, targets)
        head["weight"] = head["weight"].step(gradient.T @ inputs, lr, _DECAY)
        head["bias"] = head["bias"].step(gradient.sum(axis=0), lr, 0.0)
    found = task.learner.state().model
    errors = []
    for part, own in head.items():
        name = f"head.1.{part}"
        errors.append(relative_error(found[name], own.value, task.weights[name]))
    yield Measurement("weights", float(np.max(errors)), _WEIGHTS_TOLERANCE, "NumPy; as a share of the largest change")


def _follow_steps(
    weights: Arrays,
    betas: tuple[float, float],
    take_step: Callable[[int], LearnerState],
    find_rates: Callable[[str, int], tuple[float, float]],
) -> Iterator[Measurement]:
    """Let NumPy's AdamW take the steps of a learner, with the rate and the decay that each parameter should have."""
    followed: dict[str, AdamW] = {}
    for step in range(_STEPS):
        state = take_step(step)
        for name, moment in read_moments(state.optimizer, "exp_avg").items():
            if name not in followed:
                zeros = np.zeros(moment.shape)
                followed[name] = AdamW(weights[name].astype(np.float64), zeros, zeros, 0)
            own = followed[name]
            gradient = (moment - betas[0] * own.first) / (1 - betas[0])
            lr, decay = find_rates(name, moment.ndim)
            followed[name] = own.step(gradient, lr, decay, betas)
    seconds = read_moments(state.optimizer, "exp_avg_sq")
    moved = []
    moments = []
    for name, own in followed.items():
        moved.append(relative_error(state.model[name], own.value, weights[name]))
        moments.append(float(np.abs(seconds[name] - own.second).max() / own.second.max()))
    detail = "NumPy's AdamW; error as a share of the largest change"
    yield Measurement("weights", float(np.max(moved)), _WEIGHTS_TOLERANCE, detail)
    yield Measurement("second moment", float(np.max(moments)), _TOLERANCE, "NumPy's AdamW")


def _take_first_step(backend: Backend, rows: slice, **optim: Any) -> tuple[Arrays, float]:
    """Take the first step on ``rows`` of a batch of two; return its gradients and the length that is told of them."""
    config = _CASE.make_config(optim=optim)
    learner = create_learner(backend, config)
    load_weights(learner)
    batch = learner.prepare_batch(draw_images(config)[rows])
    metrics = learner.train_step(batch, draw_masks(config)[rows], _LR, 0.0)
    return read_gradients(learner.state().optimizer, config.optim.betas), float(metrics["grad_norm"])


def _compare_all(found: Arrays, expected: Mapping[str, NDArray[np.float64]], detail: str) -> Measurement:
    """Measure the largest error of the entries of all gradients as a share of the largest entry."""
    largest = max(float(np.abs(value).max()) for value in expected.values())
    errors = [float(np.abs(found[name] - value).max()) for name, value in expected.items()]
    return Measurement("gradients", float(np.max(errors)) / largest, _TOLERANCE, detail)


OPTIMISER_CHECKS: dict[str, Callable[[Backend], Iterator[Measurement]]] = {
    "AdamW": follow_adamw,
    "AdamW, rates that fall from layer to layer": follow_layer_decay,
    "clipped gradients": check_clipping,
    "accumulated gradients": check_accumulation,
    "moving average": check_average,
    "SGD": partial(follow_probe, optimizer="sgd"),
    "LARS": partial(follow_probe, optimizer="lars"),
}
"""The checks of optimisers and of what surrounds them, by their names."""
