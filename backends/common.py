"""What more than one backend needs, without a framework."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping

from ehm.backends.base import Arrays
from ehm.errors import CheckpointError

__all__ = [
    "SCALE",
    "STEP",
    "TRACKER",
    "check_fit",
    "chunks",
    "decays",
    "entropy",
    "first_of",
    "host_memory",
    "misfits",
    "split_average",
    "undecayed",
    "with_average",
]

SCALE, TRACKER = "scaler/scale", "scaler/growth_tracker"
"""Names, among the optimiser's arrays, of float16's loss scale and of the steps since it last changed."""
STEP = "step"
"""Name there of the number of steps made, where random numbers depend on it."""
_AVERAGE = "ema/"


def chunks(batch: int, parts: int) -> Iterator[slice]:
    """At most ``parts`` slices of a batch for gradient accumulation; a short batch gives fewer, none of them empty."""
    size = -(-batch // parts)
    for start in range(0, batch, size):
        yield slice(start, min(start + size, batch))


def decays(name: str, dimensions: int, no_decay: Collection[str] = ()) -> bool:
    """Whether weight decay applies: not to biases, norms and other vectors, nor to what ``no_decay`` names.

    Nor to tables of biases for relative positions, as in timm and in SimMIM's Swin.
    """
    return dimensions > 1 and not name.endswith((".bias", "bias_table")) and name not in no_decay


def undecayed(objective: str) -> tuple[str, ...]:
    """Tokens that a pretraining objective's published code does not decay."""
    return {"simmim": ("cls_token", "mask_token"), "beit": ("cls_token",)}.get(objective, ())


def check_fit(shapes: Mapping[str, tuple[int, ...]], arrays: Arrays) -> None:
    """Raise CheckpointError where ``arrays`` are not those of a model whose parameters have ``shapes``."""
    problems = misfits(shapes, arrays)
    problems += [f"{name} is not part of the model" for name in arrays.keys() - shapes.keys()]
    if problems:
        raise CheckpointError(f"the weights do not fit this model: {first_of(sorted(problems))}")


def misfits(shapes: Mapping[str, tuple[int, ...]], arrays: Arrays) -> list[str]:
    """What of ``shapes`` is missing among ``arrays``, and what has another shape there."""
    problems = [f"{name} is missing" for name in shapes if name not in arrays]
    return problems + [
        f"{name} is {arrays[name].shape}, not {tuple(shape)}"
        for name, shape in shapes.items()
        if name in arrays and arrays[name].shape != tuple(shape)
    ]


def first_of(problems: list[str]) -> str:
    """Three of them, and how many more there are."""
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + more


def with_average(optimizer: Arrays, average: Arrays) -> Arrays:
    """The optimiser's arrays and a moving average of the parameters, as one set."""
    return optimizer | {_AVERAGE + name: array for name, array in average.items()}


def split_average(arrays: Arrays) -> tuple[Arrays, Arrays]:
    """What :func:`with_average` put together; the average is empty where there was none."""
    optimizer = {name: array for name, array in arrays.items() if not name.startswith(_AVERAGE)}
    average = {name.removeprefix(_AVERAGE): array for name, array in arrays.items() if name.startswith(_AVERAGE)}
    return optimizer, average


def entropy(seed: int, step: int, rank: int) -> list[int]:
    """What random numbers of a step depend on, and nothing else, so that they are the same in a resumed run."""
    return [seed, step, *([rank] if rank else [])]


def host_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
