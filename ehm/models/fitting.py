"""Choose which arrays go into a network, and check that they fit.

Which of a file's arrays have to be loaded says :mod:`ehm.models.encoder_parts`. A backend gives the names and shapes of
its network's parameters, and copies the arrays that come back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ehm.config import ModelSource
from ehm.errors import CheckpointError
from ehm.models.encoder_parts import HEADS, refuse_unloaded
from ehm.models.resample import resample_arrays
from ehm.models.shapes import resize_spec
from ehm.models.tables import spread_table
from ehm.models.weights import Weights
from ehm.storage.arrays import Arrays, find_mismatches, join_some

__all__ = ["count_by_part", "fit_arrays", "keep_encoder", "resize_weights", "select_arrays"]


def resize_weights(weights: Weights, source: ModelSource) -> Weights:
    """Return ``weights``, which have a spec, for a task on images of ``source.image_size``.

    Positions and tables are resampled to that size, and every block gets a table. Raises as
    :func:`ehm.models.shapes.resize_spec` does.
    """
    assert weights.spec is not None
    spec = resize_spec(weights.spec, source)
    arrays = spread_table(resample_arrays(weights.arrays, spec, weights.spec), spec.blocks)
    return replace(weights, arrays=arrays, spec=spec)


def keep_encoder(arrays: Arrays, depth: int) -> Arrays:
    """Return the encoder of ``depth`` blocks in a pretraining model's ``arrays``, as timm's class takes it strictly."""
    encoder = {name: array for name, array in arrays.items() if not name.startswith(HEADS)}
    return spread_table(encoder, depth)


def fit_arrays(shapes: Mapping[str, tuple[int, ...]], arrays: Arrays, origin: str, head: str = "head") -> Arrays:
    """Return those of ``arrays`` that ``shapes`` names.

    Raises CheckpointError, which begins with ``origin``, if one is missing or has another shape, or if something of
    ``arrays`` would be left out that is no head (:func:`ehm.models.encoder_parts.refuse_unloaded`).
    """
    refuse_unloaded(arrays, shapes, origin, head)
    problems = find_mismatches(shapes, arrays)
    if problems:
        raise CheckpointError(f"{origin}: does not fit the encoder: {join_some(problems)}")
    return {name: arrays[name] for name in shapes}


def select_arrays(
    shapes: Mapping[str, tuple[int, ...]], arrays: Arrays, head: str, origin: str, assumptions: tuple[str, ...] = ()
) -> tuple[Arrays, tuple[str, ...]]:
    """Return what of ``arrays`` goes into a network whose parameters have ``shapes``, and notes on what is left.

    The network's head (``head.*``) stays fresh, and so may a norm behind the pooling: they are absent from the result.
    The rest must fit, as in :func:`fit_arrays`. ``origin`` is how notes and errors name the weights; ``assumptions``
    are notes on what the weights do not say.
    """
    fresh = {name for name in shapes if name.startswith("fc_norm.") and name not in arrays}
    fresh |= {name for name in shapes if name.startswith(f"{head}.")}
    wanted = {name: shape for name, shape in shapes.items() if name not in fresh}
    selected = fit_arrays(wanted, arrays, origin, head)
    unused = [name for name in arrays if name not in selected]
    notes = [f"encoder from {origin}", *assumptions]
    if fresh:
        notes.append("starts afresh: " + count_by_part(fresh))
    if unused:
        notes.append("not used from there: " + count_by_part(unused))
    return selected, tuple(notes)


def count_by_part(names: Iterable[str]) -> str:
    """Return ``names`` shortened to their first parts, each with its number of tensors."""
    counts: dict[str, int] = {}
    for name in names:
        part = "decoder" if name.startswith("decoder") else name.partition(".")[0]
        counts[part] = counts.get(part, 0) + 1
    return ", ".join(f"{part} ({count} tensors)" if count > 1 else part for part, count in sorted(counts.items()))
