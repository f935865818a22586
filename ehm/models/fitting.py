"""Choose which arrays go into a network, and check that they fit.

:mod:`ehm.models.encoder_parts` says which arrays of a file have to be loaded. A backend passes the names and shapes of
its network's parameters, and copies the arrays that it gets back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from ehm.config import ModelSource
from ehm.errors import CheckpointError
from ehm.models.encoder_parts import HEADS, refuse_unloaded
from ehm.models.resample import resample_arrays
from ehm.models.shapes import resize_spec
from ehm.models.tables import spread_table
from ehm.models.weights import Weights
from ehm.storage.arrays import Arrays, count_tensors, drop_names, find_mismatches
from ehm.storage.reading import join_some

__all__ = ["fit_arrays", "keep_encoder", "resize_weights", "select_arrays", "select_but_fresh"]

Shapes = Mapping[str, tuple[int, ...]]
"""The shapes of a network's parameters by their names."""


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
    encoder = {}
    for name, array in arrays.items():
        if not name.startswith(HEADS):
            encoder[name] = array
    return spread_table(encoder, depth)


def fit_arrays(shapes: Shapes, arrays: Arrays, origin: str, head: str = "head") -> Arrays:
    """Return the ``arrays`` that ``shapes`` names.

    Raises CheckpointError, which begins with ``origin``, if one is missing or has another shape, or if something of
    ``arrays`` would be left out that is no head (:func:`ehm.models.encoder_parts.refuse_unloaded`).
    """
    # first, because a part that the network lacks says more about the file than the shapes that differ then
    refuse_unloaded(arrays, shapes, origin, head)
    problems = find_mismatches(shapes, arrays)
    if problems:
        raise CheckpointError(f"{origin}: does not fit the encoder: {join_some(problems)}")
    return {name: arrays[name] for name in shapes}


def select_arrays(
    shapes: Shapes, arrays: Arrays, head: str, origin: str, assumptions: tuple[str, ...] = ()
) -> tuple[Arrays, tuple[str, ...]]:
    """Return what of ``arrays`` goes into a network for a task, whose parameters have ``shapes``, and notes on it.

    The network's head (``head.*``) stays fresh, and so may a norm after the pooling: they are absent from the result.
    The rest must fit, as in :func:`fit_arrays`. ``origin`` is how notes and errors name the weights; ``assumptions``
    are notes on what the weights do not say.
    """
    fresh = set()
    for name in shapes:
        # MAE's fine-tuning puts a norm after the pooling, which no pretrained encoder has
        is_new_norm = name.startswith("fc_norm.") and name not in arrays
        if is_new_norm or name.startswith(f"{head}."):
            fresh.add(name)
    selected, notes = select_but_fresh(shapes, arrays, fresh, origin, head)
    return selected, (f"encoder from {origin}", *assumptions, *notes)


def select_but_fresh(
    shapes: Shapes, arrays: Arrays, fresh: Collection[str], origin: str, head: str = "head"
) -> tuple[Arrays, list[str]]:
    """Return the ``arrays`` of a network with ``shapes``, but for parameters that start ``fresh``, and notes on both.

    The notes say which parts start afresh and which arrays are not used. Raises as :func:`fit_arrays` does.
    """
    selected = fit_arrays(drop_names(shapes, fresh), arrays, origin, head)
    notes = []
    if fresh:
        notes.append("starts afresh: " + count_tensors(map(_name_part, fresh)))
    unused = drop_names(arrays, selected)
    if unused:
        notes.append("not used from there: " + count_tensors(map(_name_part, unused)))
    return selected, notes


def _name_part(name: str) -> str:
    """Return the first part of ``name``; MAE's decoder has a dozen parts, which count as one."""
    part = name.partition(".")[0]
    return "decoder" if part.startswith("decoder") else part
