"""Learning rates of every step against torch's own schedulers."""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR, PolynomialLR, SequentialLR

from ehm.config import OptimConfig
from ehm.training.schedule import compute_learning_rate, learning_rate_at

PEAK, FLOOR = 4e-4, 1e-5


def rates(total, scheduler):
    """Return the rates of torch's ``scheduler``, a function of an optimiser, in each step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    schedule, found = scheduler(optimizer), []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(("total", "milestone"), [(800, 700), (8000, 7000), (24, 21), (10, 9)])
def test_step_is_multi_step_at_epoch_700_of_800(total, milestone):
    ours = [compute_learning_rate(step, total, 0, PEAK, schedule="step") for step in range(total)]
    theirs = rates(total, lambda optimizer: MultiStepLR(optimizer, [milestone], gamma=0.1))
    assert ours == pytest.approx(theirs)


@pytest.mark.parametrize("floor", [0.0, FLOOR])
def test_cosine_is_cosine_annealing(floor):
    ours = [compute_learning_rate(step, 200, 0, PEAK, floor) for step in range(200)]
    theirs = rates(200, lambda optimizer: CosineAnnealingLR(optimizer, 200, eta_min=floor))
    assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-12)


def test_steps_fall_at_each_milestone():
    ours = [
        compute_learning_rate(step, 12, 0, PEAK, schedule="step", milestones=(8 / 12, 11 / 12)) for step in range(12)
    ]
    assert ours == pytest.approx(rates(12, lambda optimizer: MultiStepLR(optimizer, [8, 11], gamma=0.1)))


def test_linear_is_polynomial_of_power_one():
    ours = [compute_learning_rate(step, 160, 0, PEAK, schedule="linear") for step in range(160)]
    assert ours == pytest.approx(rates(160, lambda optimizer: PolynomialLR(optimizer, 160, power=1.0)))


def test_a_run_is_as_long_as_its_epochs_or_its_steps_say():
    epochs = OptimConfig(epochs=10, warmup_epochs=2, batch_size=256, base_lr=PEAK)
    steps = OptimConfig(steps=50, warmup_steps=10, batch_size=256, base_lr=PEAK)
    assert (epochs.count_steps(5), epochs.count_warmup_steps(5)) == (50, 10)
    assert (steps.count_steps(7), steps.count_warmup_steps(7)) == (50, 10)
    assert [learning_rate_at(epochs, step, 5) for step in range(50)] == [
        learning_rate_at(steps, step, 7) for step in range(50)
    ]
    assert learning_rate_at(steps, 5, 7) == PEAK / 2


@pytest.mark.parametrize(
    ("schedule", "after"),
    [
        ("cosine", lambda optimizer: CosineAnnealingLR(optimizer, 140, eta_min=FLOOR)),
        ("step", lambda optimizer: MultiStepLR(optimizer, [140 - 20], gamma=0.1)),
    ],
)
def test_a_linear_warm_up_comes_before_either(schedule, after):
    def warmed(optimizer):
        warmup = LinearLR(optimizer, start_factor=1e-9, end_factor=1.0, total_iters=20)
        return SequentialLR(optimizer, [warmup, after(optimizer)], milestones=[20])

    ours = [compute_learning_rate(step, 160, 20, PEAK, FLOOR, schedule) for step in range(160)]
    assert ours == pytest.approx(rates(160, warmed), rel=1e-6, abs=1e-11)
    assert ours[0] == 0


def test_a_step_stops_at_the_floor():
    assert compute_learning_rate(90, 100, 0, PEAK, PEAK / 2, "step") == PEAK / 2
    assert compute_learning_rate(10, 100, 0, PEAK, PEAK / 2, "step") == PEAK
