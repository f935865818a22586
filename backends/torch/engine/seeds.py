"""Random numbers of torch's that follow from a seed, and leave the generators of the process as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["seed_random_numbers", "seed_weights"]


@contextmanager
def seed_random_numbers(device: torch.device, numbers: list[int]) -> Iterator[None]:
    """Seed torch's random numbers by ``numbers`` for a while, on the host and on ``device``."""
    on_device = []
    if device.type != "cpu":
        on_device.append(device)
    with torch.random.fork_rng(on_device, device_type=device.type):
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))
        yield


@contextmanager
def seed_weights(seed: int = 0) -> Iterator[None]:
    """Seed the random numbers of the host for a while, from which new weights are drawn: they are alike every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
