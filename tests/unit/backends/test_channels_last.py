"""Networks whose maps have their channels last in memory: the same numbers up to rounding, and the same files."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ehm.backends.base import ALONE
from ehm.backends.torch import TorchBackend
from ehm.backends.torch.diagnosis.parts import tasks
from ehm.backends.torch.engine.devices import FACTS
from ehm.storage.arrays import LearnerState

BACKEND = TorchBackend(torch.device("cpu"), ALONE)


@pytest.fixture
def channels_last(monkeypatch):
    monkeypatch.setitem(FACTS, "cpu", replace(FACTS["cpu"], channels_last=True))


def make(task):
    """A learner and a function that takes a step of it and returns the loss."""
    config = tasks.configure_task(task, "vit", "float32", {"model": {"drop_path": 0}})
    learner = BACKEND.create_task_learner(config, 3)
    take, _ = tasks._STEPS[task](learner, tasks.make_images(learner.image_size[0]))
    return learner, lambda: float(take()["loss"])


def find_layouts(learner):
    """Return for each convolution of several channels and pixels whether its channels are last, each answer once."""
    layouts = set()
    for parameter in learner.model.parameters():
        if parameter.ndim == 4 and parameter.shape[1] > 1 and parameter.shape[2] > 1:
            layouts.add(parameter.is_contiguous(memory_format=torch.channels_last))
    return layouts


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_the_losses_are_the_same_but_for_rounding(task, request):
    learner, step = make(task)
    assert find_layouts(learner) == {False}
    losses = [step(), step()]
    request.getfixturevalue("channels_last")
    learner, step = make(task)
    assert find_layouts(learner) == {True}
    np.testing.assert_allclose([step(), step()], losses, rtol=1e-4)


def test_a_run_goes_on_bit_for_bit_with_moments_in_the_order_of_their_parameters(channels_last):
    learner, step = make("segmentation")
    step()
    state = learner.state()
    for value in (*state.model.values(), *state.optimizer.values()):
        assert value.flags.c_contiguous  # files know one order only
    resumed, step_again = make("segmentation")
    resumed.load(LearnerState(dict(state.model), dict(state.optimizer)))
    assert [step(), step()] == [step_again(), step_again()]
