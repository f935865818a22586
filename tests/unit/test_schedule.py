"""Learning rates of every step against torch's own schedulers."""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR, SequentialLR

from ehm.schedule import learning_rate

PEAK, FLOOR = 4e-4, 1e-5


def rates(total, scheduler):
    """Of torch's ``scheduler``, a function of an optimiser, in each step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    schedule, found = scheduler(optimizer), []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(("total", "milestone"), [(800, 700), (8000, 7000), (24, 21), (10, 9)])
def test_step_is_multi_step_at_epoch_700_of_800(total, milestone):
    ours = [learning_rate(step, total, 0, PEAK, schedule="step") for step in range(total)]
    theirs = rates(total, lambda optimizer: MultiStepLR(optimizer, [milestone], gamma=0.1))
    assert ours == pytest.approx(theirs)


@pytest.mark.parametrize("floor", [0.0, FLOOR])
def test_cosine_is_cosine_annealing(floor):
    ours = [learning_rate(step, 200, 0, PEAK, floor) for step in range(200)]
    theirs = rates(200, lambda optimizer: CosineAnnealingLR(optimizer, 200, eta_min=floor))
    assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-12)


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

    ours = [learning_rate(step, 160, 20, PEAK, FLOOR, schedule) for step in range(160)]
    assert ours == pytest.approx(rates(160, warmed), rel=1e-6, abs=1e-11)
    assert ours[0] == 0


def test_a_step_stops_at_the_floor():
    assert learning_rate(90, 100, 0, PEAK, PEAK / 2, "step") == PEAK / 2
    assert learning_rate(10, 100, 0, PEAK, PEAK / 2, "step") == PEAK
