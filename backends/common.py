"""What more than one backend needs, without a framework."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator

__all__ = [
    "SCALE",
    "STEP",
    "TRACKER",
    "host_memory",
    "is_decayed",
    "split_batch",
    "step_entropy",
]

SCALE, TRACKER = "scaler/scale", "scaler/growth_tracker"
"""Names, among the optimiser's arrays, of float16's loss scale and of the steps since it last changed."""
STEP = "step"
"""Name there of the number of steps made, where random numbers depend on it."""


def split_batch(batch: int, parts: int) -> Iterator[slice]:
    """At most ``parts`` slices of a batch for gradient accumulation; a short batch gives fewer, none of them empty."""
    size = -(-batch // parts)
    for start in range(0, batch, size):
        yield slice(start, min(start + size, batch))


def is_decayed(name: str, dimensions: int, no_decay: Collection[str] = ()) -> bool:
    """Whether weight decay applies: not to biases, norms and other vectors, nor to what ``no_decay`` names.

    Nor to tables of biases for relative positions, as in timm and in SimMIM's Swin.
    """
    return dimensions > 1 and not name.endswith((".bias", "bias_table")) and name not in no_decay


def step_entropy(seed: int, step: int, rank: int) -> list[int]:
    """What random numbers of a step depend on, and nothing else, so that they are the same in a resumed run."""
    return [seed, step, *([rank] if rank else [])]


def host_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
