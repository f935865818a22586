"""Times that a loop waits, by a clock that the test turns: no time of this machine plays a part."""

import pytest

from ehm.config import TrainConfig
from ehm.training.waiting import WaitAdvisor, WaitClock, WaitShares


class Hours:
    """A clock and a device that the test moves on."""

    def __init__(self):
        self.time = 0.0
        self.busy = False

    def now(self):
        return self.time

    def is_busy(self):
        return self.busy

    def spend(self, seconds):
        self.time += seconds


@pytest.fixture
def hours():
    return Hours()


def batches(hours, seconds, count):
    """Yield ``count`` batches, each after so many seconds."""
    for number in range(count):
        hours.spend(seconds)
        yield number


def test_shares_are_the_times_between_steps_over_all_time(hours):
    clock = WaitClock(hours.is_busy, hours.now)
    seen = []
    for batch in clock.time_batches(batches(hours, 3, 4)):
        seen.append(batch)
        for _ in clock.time_masks(batches(hours, 1, 2)):
            pass
        hours.spend(5)  # the step
    shares = clock.read_shares()
    assert seen == [0, 1, 2, 3]
    assert shares.data == pytest.approx(0.3)
    assert shares.masks == pytest.approx(0.2)
    clock.restart()
    hours.spend(10)
    assert clock.read_shares() == WaitShares(0.0, None)


def test_a_device_that_still_works_does_not_wait(hours):
    """The host is ahead from the second step on: it waits for images, and then for the step before, at no cost."""
    clock = WaitClock(hours.is_busy, hours.now)
    for step in clock.time_batches(batches(hours, 3, 4)):
        # 5 of the 7 seconds are the rest of the step before
        for _ in clock.time_masks(batches(hours, 2 if step == 0 else 7, 1)):
            pass
        hours.busy = True
    assert hours.time == 4 * 3 + 2 + 3 * 7
    shares = clock.read_shares()
    assert shares.data == pytest.approx(3 / hours.time)
    assert shares.masks == pytest.approx(4 * 2 / hours.time)


def test_masks_of_a_later_part_cost_nothing_while_the_device_works_on_an_earlier_one(hours):
    clock = WaitClock(hours.is_busy, hours.now)
    pieces = clock.time_masks(batches(hours, 2, 3))
    next(pieces)
    hours.busy = True  # with the first part
    next(pieces)
    hours.busy = False  # it has ended before the third piece was begun
    next(pieces)
    assert clock.read_shares().masks == pytest.approx(4 / 6)


def make_config(**changed):
    return TrainConfig.model_validate({"data": {"source": "elpv", "workers": 1}, **changed})


def said(advisor, capsys, *lines):
    for steps, seconds, data, masks in lines:
        advisor.add_line(steps, seconds, WaitShares(data, masks))
    return capsys.readouterr().out


def test_waiting_for_images_is_said_once_with_what_to_change(capsys):
    advisor = WaitAdvisor(make_config(), 4)
    out = said(advisor, capsys, (20, 500, 0.9, 0), (10, 61, 0.3, 0), (10, 61, 0.4, 0))
    assert out.count("\n") == 1
    assert "waits for images 30% of the time: data.workers=4 lets every processor read (now 1)" in out


def test_with_all_processors_reading_smaller_files_are_left(capsys):
    out = said(
        WaitAdvisor(make_config(data={"source": "elpv", "workers": 8}), 8), capsys, (20, 1, 0, 0), (9, 99, 0.3, 0)
    )
    assert "the 8 data.workers already take all 8 processors; images on a local disk" in out


@pytest.mark.parametrize(
    "lines",
    [
        [(19, 500, 0.9, 0.9), (1, 500, 0.9, 0.9)],  # the first steps
        [(20, 500, 0.9, 0.9), (10, 30, 0.9, 0.9)],  # too short
        [(20, 1, 0, 0), *[(10, 30, 0.19, 0.34)] * 9],  # no more than is usual
        [(20, 1, 0, 0), (10, 30, 0.5, None), (10, 60, 0, None)],  # once, and not on average
    ],
)
def test_nothing_is_said_of_short_or_small_waits(capsys, lines):
    assert said(WaitAdvisor(make_config(), 8), capsys, *lines) == ""


def test_waiting_for_masks_is_said_with_what_the_masking_has(capsys):
    lines = [(20, 1, 0, 0), (10, 60, 0, 0.5)]
    trees = said(WaitAdvisor(make_config(), 8), capsys, *lines)
    assert "waits for masks 50% of the time" in trees
    assert "mask.build=device" in trees
    assert "mask.blocks than 6" in trees
    chains = said(WaitAdvisor(make_config(mask={"balance": "none"}), 8), capsys, *lines)
    assert "mask.build" not in chains
    parts = said(WaitAdvisor(make_config(masking="epm", mask={"views": 4}), 8), capsys, *lines)
    assert "mask.build" not in parts
    assert "mask.views" not in parts
    assert "mask.blocks than 6" in parts
