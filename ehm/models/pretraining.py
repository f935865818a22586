"""Choose the weights that a pretraining run begins with: ``model.init``, published ones or our own, to go on from.

The encoder has to be the run's own kind; its image size, and a Swin's window, may differ. No framework here.
"""

from __future__ import annotations

from pathlib import Path

from ehm.config import ModelSource, TrainConfig
from ehm.config.encoders import EncoderSpec
from ehm.errors import CheckpointError
from ehm.models.encoder_parts import HEADS
from ehm.models.fitting import Shapes, select_but_fresh
from ehm.models.opening import ReadFile, open_model, read_safetensors
from ehm.models.resample import resample_arrays
from ehm.models.tables import SHARED_TABLE, average_tables
from ehm.models.weights import Weights
from ehm.storage.arrays import Arrays, find_mismatches

__all__ = ["select_initial_arrays"]

_RESAMPLED = ("image_size", "window")
"""Sizes of an encoder that may be others than those of the weights."""


def select_initial_arrays(
    config: TrainConfig, shapes: Shapes, read_file: ReadFile = read_safetensors
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
    # a bare file does not say its heads and its grid, which are most likely the run's
    source = ModelSource(init=init, heads=config.spec.heads, image_size=config.spec.image_size)
    weights = open_model(source, read_file)
    notes = [f"begins with the weights of {init}", *weights.provenance.notes]
    arrays = _resample_same_kind(weights, config.spec, init)
    if SHARED_TABLE in shapes and SHARED_TABLE not in arrays:
        # the encoder was fine-tuned, where each block got a table of its own
        arrays = average_tables(arrays)
        if SHARED_TABLE in arrays:
            notes.append("the biases for relative positions are the mean of those of its blocks")
    selected, found = select_but_fresh(shapes, arrays, _find_fresh_names(shapes, arrays), init)
    notes += found
    inputs = weights.provenance.inputs
    if (inputs.mean, inputs.std) != (config.data.mean, config.data.std):
        notes.append(f"these weights are taken as trained with data.mean {inputs.mean} and data.std {inputs.std}")
    return selected, tuple(notes)


def _resample_same_kind(weights: Weights, spec: EncoderSpec, init: str) -> Arrays:
    """Resample the arrays to ``spec``; CheckpointError if their encoder is another one at any size."""
    found = weights.spec
    if found is None:
        raise CheckpointError(f"model.init {init}: holds {weights.timm}, and the run's encoder is {spec.description}")
    if found.description != spec.description:
        raise CheckpointError(
            f"model.init {init}: holds {found.description}, and the run's encoder is {spec.description}"
        )
    theirs = []
    ours = []
    for name, wanted in vars(spec).items():
        held = getattr(found, name)
        if name not in _RESAMPLED and held != wanted:
            theirs.append(f"{name} {held}")
            ours.append(f"{name} {wanted}")
    if theirs:
        raise CheckpointError(
            f"model.init {init}: its encoder has {', '.join(theirs)}, and the run's has {', '.join(ours)}"
        )
    return resample_arrays(weights.arrays, spec, found)


def _find_fresh_names(shapes: Shapes, arrays: Arrays) -> set[str]:
    """Return the names of those parts beside the encoder that ``arrays`` do not have complete."""
    parts = list(HEADS)
    if "fc_norm.weight" in arrays:
        # the norm of a fine-tuned encoder follows the pooling, which pretraining does not have
        parts.append("norm.")
    fresh: set[str] = set()
    for part in parts:
        wanted = {name: shape for name, shape in shapes.items() if name.startswith(part)}
        # a part is taken whole or not at all: half of a decoder's weights would fit nothing
        if find_mismatches(wanted, arrays):
            fresh.update(wanted)
    return fresh
