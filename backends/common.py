"""What more than one backend needs, without a framework."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from ehm.backends.base import Arrays
from ehm.errors import CheckpointError

__all__ = ["check_fit", "chunks", "decays"]


def chunks(batch: int, parts: int) -> Iterator[slice]:
    """At most ``parts`` slices of a batch for gradient accumulation; a short batch gives fewer, none of them empty."""
    size = -(-batch // parts)
    for start in range(0, batch, size):
        yield slice(start, min(start + size, batch))


def decays(name: str, dimensions: int, no_decay: Collection[str] = ()) -> bool:
    """Whether weight decay applies: not to biases, norms and other vectors, nor to what ``no_decay`` names."""
    return dimensions > 1 and not name.endswith(".bias") and name not in no_decay


def check_fit(shapes: Mapping[str, tuple[int, ...]], arrays: Arrays) -> None:
    """Raise CheckpointError where ``arrays`` are not those of a model whose parameters have ``shapes``."""
    problems = [f"{name} is missing" for name in shapes.keys() - arrays.keys()]
    problems += [f"{name} is not part of the model" for name in arrays.keys() - shapes.keys()]
    problems += [
        f"{name} is {arrays[name].shape}, not {shape}"
        for name, shape in shapes.items()
        if name in arrays and arrays[name].shape != shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError("the weights do not fit this model: " + "; ".join(sorted(problems)[:3]) + more)
