"""Named arrays: the form in which parameters travel between files, backends and models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from ehm.errors import CheckpointError

__all__ = ["Arrays", "LearnerState", "check_fit", "first_of", "misfits", "split_average", "with_average"]

Arrays = dict[str, NDArray[Any]]
"""Plain arrays by name. Parameter names are timm's (``blocks.0.attn.qkv.weight``) on every backend."""


@dataclass
class LearnerState:
    """All that a run needs to go on: parameters and buffers, and the optimiser's arrays (moments, step, averages)."""

    model: Arrays
    optimizer: Arrays


_AVERAGE = "ema/"


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
