"""Named arrays: the form in which parameters travel between files, backends and models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ehm.errors import CheckpointError
from ehm.storage.reading import join_some

__all__ = [
    "Arrays",
    "LearnerState",
    "add_prefix",
    "check_shapes",
    "count_tensors",
    "drop_names",
    "find_mismatches",
    "join_average",
    "split_average",
    "take_prefix",
    "to_float32",
]

T = TypeVar("T")
Arrays = dict[str, NDArray[Any]]
"""Plain arrays by name. Parameter names are timm's (``blocks.0.attn.qkv.weight``) on every backend."""
_AVERAGE = "ema/"
"""Prefix of the names of a moving average, which is kept among the optimiser's arrays."""


@dataclass
class LearnerState:
    """All that a run needs to go on: parameters and buffers, and the optimiser's arrays (moments, step, averages)."""

    model: Arrays
    optimizer: Arrays


def check_shapes(shapes: Mapping[str, tuple[int, ...]], arrays: Arrays) -> None:
    """Raise CheckpointError if ``arrays`` are not those of a model whose parameters have ``shapes``."""
    problems = find_mismatches(shapes, arrays)
    for name in arrays.keys() - shapes.keys():
        problems.append(f"{name} is not part of the model")
    if problems:
        raise CheckpointError(f"the weights do not fit this model: {join_some(sorted(problems))}")


def count_tensors(parts: Iterable[str]) -> str:
    """Return the names in ``parts``, one for each tensor, in order and with their numbers: "decoder (8 tensors)"."""
    words = []
    for part, count in sorted(Counter(parts).items()):
        words.append(f"{part} ({count} tensors)" if count > 1 else part)
    return ", ".join(words)


def find_mismatches(shapes: Mapping[str, tuple[int, ...]], arrays: Arrays) -> list[str]:
    """List the names in ``shapes`` that ``arrays`` lack, then those that have another shape there."""
    missing = []
    misshapen = []
    for name, shape in shapes.items():
        if name not in arrays:
            missing.append(f"{name} is missing")
        elif arrays[name].shape != tuple(shape):
            misshapen.append(f"{name} is {arrays[name].shape}, not {tuple(shape)}")
    return missing + misshapen


def drop_names(entries: Mapping[str, T], names: Container[str]) -> dict[str, T]:
    """Return ``entries`` without those that ``names`` has."""
    return {name: value for name, value in entries.items() if name not in names}


def add_prefix(entries: Mapping[str, T], prefix: str) -> dict[str, T]:
    """Return ``entries`` with ``prefix`` before their names."""
    return {prefix + name: value for name, value in entries.items()}


def take_prefix(entries: Mapping[str, T], prefix: str) -> dict[str, T]:
    """Return those of ``entries`` whose names begin with ``prefix``, under the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in entries.items() if name.startswith(prefix)}


def to_float32(arrays: Arrays) -> Arrays:
    """Return ``arrays`` with those of other floating types as float32."""
    converted = dict(arrays)
    for name, array in arrays.items():
        if np.issubdtype(array.dtype, np.floating):  # not the number of batches that a batch norm has seen
            converted[name] = array.astype(np.float32, copy=False)
    return converted


def join_average(optimizer: Arrays, average: Arrays) -> Arrays:
    """Return the optimiser's arrays and a moving average of the parameters as one set."""
    return optimizer | add_prefix(average, _AVERAGE)


def split_average(arrays: Arrays) -> tuple[Arrays, Arrays]:
    """Split what :func:`join_average` joined; the average is empty if there was none."""
    average = take_prefix(arrays, _AVERAGE)
    return drop_names(arrays, add_prefix(average, _AVERAGE)), average
