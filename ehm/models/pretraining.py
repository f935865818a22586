"""Choose the weights that a pretraining run begins with: ``model.init``, published ones or our own, to go on from.

The encoder has to be the run's own kind; its image size, and a Swin's window, may differ. No framework here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ehm.config import ModelSource, TrainConfig
from ehm.config.encoders import EncoderSpec
from ehm.errors import CheckpointError
from ehm.models.encoder_parts import HEADS
from ehm.models.fitting import count_by_part, fit_arrays
from ehm.models.opening import ReadFile, open_model, read_safetensors
from ehm.models.resample import resample_arrays
from ehm.models.tables import SHARED_TABLE, average_tables
from ehm.models.weights import Weights
from ehm.storage.arrays import Arrays, find_mismatches

__all__ = ["select_initial_arrays"]

_RESAMPLED = ("image_size", "window")
"""Sizes of an encoder that may be others than those of the weights."""


def select_initial_arrays(
    config: TrainConfig, shapes: Mapping[str, tuple[int, ...]], read_file: ReadFile = read_safetensors
) -> tuple[Arrays, tuple[str, ...]]:
    """Return what of ``config.model.init`` goes into a model whose parameters have ``shapes``, and notes on it.

    The result is empty if no weights are asked for. All of the encoder is in it, positions and tables resampled to the
    run's grid; of what pretraining has beside it (:data:`ehm.models.encoder_parts.HEADS`), each part that the weights
    lack, or have of another shape, is absent from the result and stays as the model began. Raises CheckpointError if
    there are no weights, or those of another encoder.
    """
    init = config.model.init
    if init is None:
        return {}, ()
    if not Path(init).exists():
        raise CheckpointError(
            f"model.init {init}: no such file or folder; ehm train takes a run folder, a checkpoint, or a .safetensors "
            "or .pth file"
        )
    source = ModelSource(init=init, heads=config.spec.heads, image_size=config.spec.image_size)
    weights = open_model(source, read_file)
    notes = [f"begins with the weights of {init}", *weights.provenance.notes]
    arrays = _resample_same_kind(weights, config.spec, init)
    if SHARED_TABLE in shapes and SHARED_TABLE not in arrays:
        arrays = average_tables(arrays)
        if SHARED_TABLE in arrays:
            notes.append("the biases for relative positions are the mean of those of its blocks")
    fresh = _find_fresh_names(shapes, arrays)
    selected = fit_arrays({name: shape for name, shape in shapes.items() if name not in fresh}, arrays, init)
    if fresh:
        notes.append("starts afresh: " + count_by_part(fresh))
    unused = [name for name in arrays if name not in selected]
    if unused:
        notes.append("not used from there: " + count_by_part(unused))
    inputs = weights.provenance.inputs
    if (inputs.mean, inputs.std) != (config.data.mean, config.data.std):
        notes.append(f"these weights are taken as trained with data.mean {inputs.mean} and data.std {inputs.std}")
    return selected, tuple(notes)


def _resample_same_kind(weights: Weights, spec: EncoderSpec, init: str) -> Arrays:
    """Resample the arrays to ``spec``; CheckpointError if their encoder is another one at any size."""
    found = weights.spec
    if found is None or found.description != spec.description:
        held = weights.timm if found is None else found.description
        raise CheckpointError(f"model.init {init}: holds {held}, and the run's encoder is {spec.description}")
    differing = []
    for name in vars(spec):
        if name not in _RESAMPLED and getattr(found, name) != getattr(spec, name):
            differing.append(name)
    if differing:
        theirs = ", ".join(f"{name} {getattr(found, name)}" for name in differing)
        ours = ", ".join(f"{name} {getattr(spec, name)}" for name in differing)
        raise CheckpointError(f"model.init {init}: its encoder has {theirs}, and the run's has {ours}")
    return resample_arrays(weights.arrays, spec, found)


def _find_fresh_names(shapes: Mapping[str, tuple[int, ...]], arrays: Arrays) -> set[str]:
    """Return the names of those parts beside the encoder that ``arrays`` do not have complete."""
    parts = list(HEADS)
    if "fc_norm.weight" in arrays:
        # the norm of a fine-tuned encoder follows the pooling, which pretraining does not have
        parts.append("norm.")
    fresh: set[str] = set()
    for part in parts:
        names = {name: shape for name, shape in shapes.items() if name.startswith(part)}
        if find_mismatches(names, arrays):
            fresh |= names.keys()
    return fresh
