"""What weights a pretraining run begins with: ``model.init``, published ones or our own, to go on from.

The encoder has to be the run's own kind; its image size, and a Swin's window, may differ. No framework here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ehm.config import ModelSource, TrainConfig
from ehm.config.encoders import EncoderSpec, SwinSpec
from ehm.errors import CheckpointError
from ehm.models.encoder_parts import HEADS
from ehm.models.resample import TABLE, resample_arrays
from ehm.models.shapes import SHARED_TABLE
from ehm.models.weights import ReadFile, Weights, fit, groups, read_safetensors, read_weights
from ehm.storage.arrays import Arrays, misfits

__all__ = ["initial_weights"]


def initial_weights(
    config: TrainConfig, shapes: Mapping[str, tuple[int, ...]], read_file: ReadFile = read_safetensors
) -> tuple[Arrays, tuple[str, ...]]:
    """What of ``config.model.init`` goes into a model whose parameters have ``shapes``, and notes on it.

    Nothing where no weights are asked for. All of the encoder is there, positions and tables resampled to the run's
    grid; of what pretraining has beside it (:data:`ehm.models.encoder_parts.HEADS`), each part that the weights lack,
    or have of another shape, is absent from the result and stays as the model began. Raises CheckpointError where there
    are no weights, or those of another encoder.
    """
    init, spec = config.model.init, config.spec
    if init is None:
        return {}, ()
    if not Path(init).exists():
        raise CheckpointError(
            f"model.init {init}: no such file or folder; ehm train takes a run folder, a checkpoint, or a .safetensors "
            "or .pth file"
        )
    source = ModelSource(init=init, heads=spec.heads, image_size=spec.image_size)
    weights = read_weights(source, read_file)
    arrays, notes = _shared(_of_same_kind(weights, spec, init), SHARED_TABLE in shapes)
    fresh = _fresh(shapes, arrays)
    taken = fit({name: shape for name, shape in shapes.items() if name not in fresh}, arrays, init)
    notes = [f"begins with the weights of {init}", *weights.notes, *notes]
    if fresh:
        notes.append("starts afresh: " + groups(fresh))
    if unused := [name for name in arrays if name not in taken]:
        notes.append("not used from there: " + groups(unused))
    own = weights.inputs
    if (own.mean, own.std) != (config.data.mean, config.data.std):
        notes.append(f"these weights are taken as trained with data.mean {own.mean} and data.std {own.std}")
    return taken, tuple(notes)


def _of_same_kind(weights: Weights, spec: EncoderSpec, init: str) -> Arrays:
    """The arrays, resampled to ``spec``; CheckpointError where their encoder is another one at any size."""
    found = weights.spec
    if found is None or _kind(found) != _kind(spec):
        holds = weights.timm if found is None else _kind(found)
        raise CheckpointError(f"model.init {init}: holds {holds}, and the run's encoder is {_kind(spec)}")
    sizes = [name for name in vars(spec) if name not in _RESAMPLED and getattr(found, name) != getattr(spec, name)]
    if sizes:
        theirs, ours = (", ".join(f"{name} {getattr(each, name)}" for name in sizes) for each in (found, spec))
        raise CheckpointError(f"model.init {init}: its encoder has {theirs}, and the run's has {ours}")
    return resample_arrays(weights.arrays, spec, found)


def _kind(spec: EncoderSpec) -> str:
    if isinstance(spec, SwinSpec):
        return "a Swin"
    return "a ViT with relative positions, as SimMIM's and BEiT's" if spec.relative else "a plain ViT, as MAE's"


def _shared(arrays: Arrays, wanted: bool) -> tuple[Arrays, list[str]]:
    """``arrays`` with one table for all blocks where that is ``wanted`` and each block has its own."""
    own = [name for name in arrays if name.startswith("blocks.") and name.endswith(TABLE)]
    if not wanted or not own:
        return arrays, []
    shared = {name: array for name, array in arrays.items() if name not in own}
    shared[SHARED_TABLE] = np.stack([arrays[name] for name in own]).mean(axis=0, dtype=np.float64).astype(np.float32)
    return shared, ["the biases for relative positions are the mean of those of its blocks"]


def _fresh(shapes: Mapping[str, tuple[int, ...]], arrays: Arrays) -> set[str]:
    """Names of those parts beside the encoder that ``arrays`` do not have whole.

    And of the last norm, where it stands behind an average in a fine-tuned encoder, which pretraining has not.
    """
    fresh: set[str] = set()
    for head in (*HEADS, "norm.") if "fc_norm.weight" in arrays else HEADS:
        part = {name: shape for name, shape in shapes.items() if name.startswith(head)}
        if misfits(part, arrays):
            fresh |= part.keys()
    return fresh


_RESAMPLED = ("image_size", "window")
"""What of an encoder may be another than that of the weights."""
