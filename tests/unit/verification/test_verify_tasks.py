"""``ehm verify`` finds tasks and optimisers right on a CPU, and a device with a fault wrong."""

import numpy as np
import pytest

from ehm import backends
from ehm.errors import BackendError
from ehm.verification.check import SkipError
from ehm.verification.gradients import read_gradients
from ehm.verification.optimiser import OPTIMISER_CHECKS
from ehm.verification.task_numerics import STEPS, compare_step_with_cpu, compare_step_with_numpy

LABELS = "classification by labels"


class Faulty:
    """A CPU with a fault: it changes configurations, what a step is given, or the state behind it."""

    name = "cpu"

    def __init__(self, settings=None, step=None, state=None):
        self._settings = settings or (lambda config: config)
        self._step = step or (lambda *arguments: arguments)
        self._state = state or (lambda state: state)

    def create_learner(self, config):
        return self._alter(backends.get("cpu").create_learner(self._settings(config)))

    def create_task_learner(self, config, classes):
        return self._alter(backends.get("cpu").create_task_learner(self._settings(config), classes))

    def create_tokenizer(self, config):
        return self._alter(backends.get("cpu").create_tokenizer(self._settings(config)))

    def _alter(self, learner):
        take_step, read_state = learner.train_step, learner.state
        learner.train_step = lambda *arguments: take_step(*self._step(*arguments))
        learner.state = lambda: self._state(read_state())
        return learner


def failed(measurements):
    """Names of the measurements that are not within their bounds."""
    return {each.name for each in measurements if not each.value <= each.bound}


@pytest.mark.parametrize("name", STEPS)
def test_every_task_computes_as_numpy(name):
    """Far within the bounds, which leave room for TF32; the processor's kernels differ by about 1e-5."""
    for each in compare_step_with_numpy(backends.get("cpu"), name):
        assert each.value < each.bound / 10, each


@pytest.mark.parametrize("name", OPTIMISER_CHECKS)
def test_every_optimiser_computes_as_numpy(name):
    for each in OPTIMISER_CHECKS[name](backends.get("cpu")):
        assert each.value < each.bound / 10, each


def change_gradient(state):
    """Turn the gradient of the first matrix around, once there are gradients."""
    for key in state.optimizer:
        if key.endswith("weight/exp_avg"):
            state.optimizer[key] = -state.optimizer[key]
            break
    return state


@pytest.mark.parametrize("name", ["classification by labels", "tokenizer, mixed codes"])
def test_a_wrong_gradient_of_a_task_is_seen(name):
    faulty = Faulty(state=change_gradient)
    assert failed(compare_step_with_numpy(faulty, name)) == {"gradients"}
    assert failed(compare_step_with_cpu(faulty, backends.get("cpu"), name)) == {"gradients"}
    assert failed(compare_step_with_cpu(backends.get("cpu"), backends.get("cpu"), name)) == set()


@pytest.mark.parametrize("name", STEPS)
def test_all_parts_of_a_network_take_part(name):
    """A gradient that is zero, as behind a ReLU that lets nothing through, would agree with anything."""
    step = STEPS[name](backends.get("cpu"))
    step.take()
    for parameter, gradient in read_gradients(step.learner.state().optimizer, step.betas).items():
        assert np.any(gradient), parameter


def test_other_targets_are_seen():
    smoothed = Faulty(step=lambda images, targets, *rates: (images, 0.99 * targets + 0.01 / 3, *rates))
    assert failed(compare_step_with_numpy(smoothed, LABELS)) == {"loss", "gradients"}


def set_optim(**values):
    """Return a function that changes ``optim`` of a configuration."""
    return lambda config: config.model_copy(update={"optim": config.optim.model_copy(update=values)})


def take_half(batch, masks, *rates):
    """Train with the masks of the first image alone, for all images."""
    return (batch, np.repeat(masks[:1], len(masks), axis=0), *rates)


def decay_always(batch, masks, lr, weight_decay, *ema):
    return (batch, masks, lr, weight_decay, *[0.9] * len(ema))


@pytest.mark.parametrize(
    ("name", "fault", "seen"),
    [
        ("AdamW", {"step": lambda batch, masks, lr, decay: (batch, masks, 1.1 * lr, decay)}, {"weights"}),
        ("AdamW", {"step": lambda batch, masks, lr, decay: (batch, masks, lr, 0.0)}, {"weights"}),
        (
            "AdamW, rates that fall from layer to layer",
            {"settings": lambda config: config.model_copy(update={"layer_decay": 1.0})},
            {"weights"},
        ),
        ("clipped gradients", {"settings": set_optim(clip_grad=None)}, {"gradients"}),
        ("accumulated gradients", {"step": take_half}, {"gradients"}),
        ("moving average", {"step": decay_always}, {"weights"}),
        ("SGD", {"step": lambda images, targets, lr, decay: (images, targets, lr, 0.0)}, {"weights"}),
        ("LARS", {"settings": lambda config: config.model_copy(update={"optimizer": "sgd"})}, {"weights"}),
    ],
)
def test_a_wrong_optimiser_is_seen(name, fault, seen):
    assert failed(OPTIMISER_CHECKS[name](Faulty(**fault))) == seen


def test_a_task_that_a_backend_lacks_is_skipped():
    class Lacking:
        def create_task_learner(self, config, classes):
            raise BackendError("detection: only with torch")

    with pytest.raises(SkipError, match="only with torch"):
        list(compare_step_with_numpy(Lacking(), "detection by Mask R-CNN"))
