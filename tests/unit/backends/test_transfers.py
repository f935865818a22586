"""Copies beside the arithmetic of a device: a stand-in for a device notes in which order its streams are told what."""

from contextlib import contextmanager
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ehm.backends.torch.engine import transfers

DEVICE = torch.device("cuda", 0)


class Stream:
    def __init__(self, name, log):
        self.name, self.log, self.numbers = name, log, count(1)

    def record_event(self):
        event = Event(self.log)
        event.record(self)
        return event

    def wait_event(self, event):
        self.log.append(f"{self.name} waits for {event.name}")


class Event:
    """A place in a stream."""

    def __init__(self, log):
        self.log = log

    def record(self, stream):
        self.name = f"{stream.name} {next(stream.numbers)}"
        self.log.append(f"event {self.name}")

    def synchronize(self):
        self.log.append(f"host waits for {self.name}")


class Chip:
    """The module of functions of a device, as torch.cuda is."""

    def __init__(self, has_streams):
        self.log = []
        self.running = self.steps = Stream("steps", self.log)
        if has_streams:
            self.Stream = lambda device: Stream("copies", self.log)

    def Event(self):  # noqa: N802
        event = Event(self.log)
        return SimpleNamespace(record=lambda: event.record(self.running), synchronize=event.synchronize)

    def current_stream(self, device):
        return self.running

    @contextmanager
    def stream(self, stream):
        self.running = stream
        yield
        self.running = self.steps


class Values:
    """A tensor, on the device or in pinned memory of the host."""

    shape, dtype = (2,), torch.float32

    def __init__(self, chip, device=None):
        self.chip, self.device = chip, device

    def pin_memory(self):
        return self

    def to(self, device, non_blocking):
        self.chip.log.append(f"copy in {self.chip.running.name}" + ", waiting" * (not non_blocking))
        return Values(self.chip, device)

    def copy_(self, source, non_blocking):
        source.to(None, non_blocking)

    def record_stream(self, stream):
        self.chip.log.append(f"memory read in {stream.name}")

    def numpy(self):
        return self


@pytest.fixture
def make_chip(monkeypatch):
    def make(has_streams):
        chip = Chip(has_streams)
        functions = {"from_numpy": lambda array: Values(chip), "empty": lambda *shape, **options: Values(chip)}
        monkeypatch.setattr(transfers, "torch", SimpleNamespace(**functions))
        monkeypatch.setattr(transfers, "get_device_module", lambda device: chip)
        transfers._get_copy_stream.cache_clear()
        return chip

    yield make
    transfers._get_copy_stream.cache_clear()


def test_a_piece_is_copied_beside_the_kernels_of_the_next(make_chip):
    chip = make_chip(has_streams=True)
    waits = []
    for piece in (1, 2):
        chip.log.append(f"kernels of piece {piece}")
        waits.append(transfers.start_download(Values(chip, DEVICE)))
    waits[0]()
    assert chip.log == [
        "kernels of piece 1",
        "event steps 1",
        "copies waits for steps 1",
        "copy in copies",
        "event copies 1",
        "memory read in copies",
        "kernels of piece 2",
        "event steps 2",
        "copies waits for steps 2",
        "copy in copies",
        "event copies 2",
        "memory read in copies",
        "host waits for copies 1",
    ]


def test_images_travel_while_the_device_works_on_the_step_before(make_chip):
    chip = make_chip(has_streams=True)
    take_images = transfers.start_upload(np.zeros(2), DEVICE)
    chip.log.append("kernels of the step before")
    assert take_images().device is DEVICE
    assert chip.log == [
        "copy in copies",
        "event copies 1",
        "kernels of the step before",
        "steps waits for copies 1",
        "memory read in steps",
    ]


def test_a_device_with_one_stream_copies_in_it(make_chip):
    chip = make_chip(has_streams=False)
    assert transfers.upload_array(np.zeros(2), DEVICE).device is DEVICE
    transfers.start_download(Values(chip, DEVICE))()
    assert chip.log == ["copy in steps", "copy in steps", "event steps 1", "host waits for steps 1"]


def test_a_cpu_copies_nothing():
    array = np.arange(3.0)
    tensor = transfers.start_upload(array, torch.device("cpu"))()
    assert np.shares_memory(transfers.start_download(tensor)(), array)
