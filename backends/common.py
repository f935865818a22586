"""Helpers that more than one backend needs, without a framework."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ehm.config import TrainConfig

__all__ = [
    "SCALE",
    "STEP",
    "TRACKER",
    "count_averaged_blocks",
    "draw_normal_head",
    "is_decayed",
    "make_step_seed",
    "measure_host_memory",
    "measure_resident_memory",
    "split_batch",
]

SCALE = "scaler/scale"
"""Name, among the optimiser's arrays, of float16's loss scale."""
TRACKER = "scaler/growth_tracker"
"""Name there of the number of steps since the loss scale last changed."""
STEP = "step"
"""Name there of the number of steps taken, if random numbers depend on it."""


def split_batch(batch: int, parts: int) -> Iterator[slice]:
    """Yield at most ``parts`` slices of a batch for gradient accumulation; a short batch gives fewer, none empty."""
    size = -(-batch // parts)  # rounded up
    for start in range(0, batch, size):
        yield slice(start, min(start + size, batch))


def is_decayed(name: str, dimensions: int, no_decay: Collection[str] = ()) -> bool:
    """Return whether weight decay applies: not to biases, norms and other vectors, nor to what ``no_decay`` names.

    It does not apply to tables of biases for relative positions either, as in timm and in SimMIM's Swin.
    """
    return dimensions > 1 and not name.endswith((".bias", "bias_table")) and name not in no_decay


def make_step_seed(seed: int, step: int, rank: int) -> list[int]:
    """Return the numbers that seed a step's random numbers, which are the same in a resumed run then."""
    numbers = [seed, step]
    if rank:
        # left out for process 0, so that a run of one process draws what it always drew
        numbers.append(rank)
    return numbers


def count_averaged_blocks(config: TrainConfig) -> int:
    """Return the number of last blocks of a teacher whose outputs are averaged to features (data2vec, section 3.3).

    They are half of the blocks unless ``model.teacher_blocks`` says otherwise, and 0 for a teacher that stays as it is,
    whose features are the tokens behind its last norm.
    """
    if config.model.teacher != "ema":
        return 0
    return config.model.teacher_blocks or max(1, config.spec.blocks // 2)


def draw_normal_head(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Draw the weights of the head under which gradients are measured: standard deviation 0.02, always the same.

    NumPy's numbers are the same on every device and with every version of a framework.
    """
    return np.random.default_rng(0).normal(0, 0.02, shape).astype(np.float32)


def measure_resident_memory() -> int:
    """Return the bytes of this machine's memory that the process occupies now; where Linux is not, its peak."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no Linux
        # macOS counts bytes, other systems kilobytes
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure_host_memory() -> int:
    """Return the bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
