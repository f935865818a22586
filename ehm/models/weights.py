"""Encoder weights as plain arrays: where they lie, what sizes they have, and what of them a network takes.

A source is a run of ours, one of its checkpoints, or a file, under timm's names or those of a published checkpoint
(:mod:`ehm.models.published`). What of a file has to be loaded says :mod:`ehm.models.encoder_parts`. No framework here:
a backend passes its own reader for files that only its framework can read, and copies the arrays into its network.
Reading a file never executes anything in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from ehm.config import ModelSource, TrainConfig
from ehm.config.encoders import EncoderSpec
from ehm.config.inputs import InputSpec
from ehm.errors import CheckpointError
from ehm.models.encoder_file import read_facts
from ehm.models.encoder_parts import HEADS, refuse_foreign_parts, refuse_unloaded
from ehm.models.published import timm_names
from ehm.models.resample import TABLE, resample_arrays
from ehm.models.shapes import SHARED_TABLE, check_sizes, described, guessed, sizes
from ehm.storage.arrays import Arrays, first_of, misfits
from ehm.storage.checkpoint import open_checkpoint

__all__ = [
    "ReadFile",
    "Weights",
    "checkpoint_inputs",
    "encoder_arrays",
    "fit",
    "fitted",
    "groups",
    "is_bare_file",
    "of_checkpoint",
    "of_file",
    "read_safetensors",
    "read_weights",
    "select",
    "shared_to_blocks",
]

_BEIT_INPUTS = InputSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
"""The images of BEiT's pretraining."""

ReadFile = Callable[[Path], Arrays]
"""Reads a file of weights: arrays by name, or a CheckpointError."""


@dataclass(frozen=True)
class Weights:
    """Arrays under timm's names, float32 where floating, and the sizes of their encoder, or the name of timm's model.

    ``image_size`` is that of timm's model; ``inputs`` says how images were prepared in training. ``notes`` say what was
    assumed because the file does not tell it.
    """

    arrays: Arrays
    spec: EncoderSpec | None = None
    timm: str | None = None
    image_size: tuple[int, int] | None = None
    inputs: InputSpec = field(default_factory=InputSpec)
    notes: tuple[str, ...] = ()


def read_safetensors(path: Path) -> Arrays:
    """Arrays of a ``.safetensors`` file, bfloat16 as float32; CheckpointError where it is none or holds other types."""
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path}: only torch reads such files; pip install 'ehm[torch]', or save the tensors as .safetensors"
        )
    try:
        return {name: _array(value) for name, value in deserialize(path.read_bytes())}
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file: {error}") from None
    except KeyError as error:
        raise CheckpointError(f"{path}: holds tensors of type {error}; {', '.join(_TYPES)} and BF16 load") from None


def read_weights(source: ModelSource, read_file: ReadFile = read_safetensors) -> Weights:
    """The weights that ``source.init`` names: a run folder, a checkpoint or its file, or a file of weights.

    Raises CheckpointError where there are none, they were altered, or a file's sizes cannot be told.
    """
    path = Path(source.init)
    if is_bare_file(source):
        return of_file(source, read_file)
    if path.is_file() or path.is_dir():
        opened = open_checkpoint(path)
        return of_checkpoint(opened.model, opened.metadata, source.init)
    raise CheckpointError(
        f"model.init {source.init}: no such file or folder; it takes a run folder, a .safetensors or .pth file, "
        "timm:NAME or scratch"
    )


def is_bare_file(source: ModelSource) -> bool:
    """Whether ``source.init`` is a file of weights by itself, not that of a checkpoint."""
    path = Path(source.init)
    return path.is_file() and not (path.parent / "state.json").is_file()


def of_checkpoint(arrays: Arrays, meta: Mapping[str, Any], origin: str) -> Weights:
    """What a checkpoint holds; CheckpointError, which begins with ``origin``, if that is no encoder."""
    if meta["kind"] == "tokenizer":
        raise CheckpointError(f"{origin}: holds a tokenizer, which is for model.tokenizer, and no encoder")
    if meta["kind"] not in ("pretrain", "classifier"):
        parts = {name: name.partition(INNER)[2] for name in arrays}
        arrays = {inner: arrays[name] for name, inner in parts.items() if inner}
    weights = Weights(_floats(arrays), inputs=checkpoint_inputs(meta))
    if meta["kind"] == "pretrain":
        return replace(weights, spec=TrainConfig.model_validate(meta["config"]).spec)
    encoder = meta["encoder"]
    if encoder["family"] == "timm":
        return replace(weights, timm=encoder["name"], image_size=tuple(encoder["image_size"]))
    return replace(weights, spec=described(encoder))


def checkpoint_inputs(meta: Mapping[str, Any]) -> InputSpec:
    """Return how images were prepared for what a checkpoint holds; ``meta`` is its description."""
    # older checkpoints say only in their configuration how pixels were normalised
    return InputSpec.from_mapping({**meta["config"].get("data", {}), **meta.get("inputs", {})})


def of_file(source: ModelSource, read_file: ReadFile) -> Weights:
    """Read the file ``source.init``: one of ours, which says what its encoder is, or one of others.

    For files of others see :func:`ehm.models.shapes.sizes` for what is read from shapes, and its errors. Their images
    are taken as normalised with BEiT's mean and std if they have BEiT's head, else with ImageNet's. ``notes`` of the
    result say in one line what was assumed. Raises CheckpointError as
    :func:`ehm.models.encoder_parts.refuse_foreign_parts` does.
    """
    path = Path(source.init)
    arrays = timm_names(read_file(path))
    refuse_foreign_parts(arrays, source.init)
    facts = read_facts(path)
    if facts.spec is not None:
        check_sizes(arrays, facts.spec, source.init)
        return Weights(_floats(arrays), facts.spec, inputs=facts.inputs or InputSpec())
    spec = sizes(arrays, source)
    assumed = guessed(spec, source)
    inputs = facts.inputs
    if inputs is None:
        inputs = _BEIT_INPUTS if "lm_head.weight" in arrays else InputSpec()
        assumed.append(f"mean {list(inputs.mean)} and std {list(inputs.std)} (data.mean, data.std)")
    notes = (f"the file does not say all of its encoder; assumed: {', '.join(assumed)}",) if assumed else ()
    return Weights(_floats(arrays), spec, inputs=inputs, notes=notes)


def fitted(weights: Weights, spec: EncoderSpec) -> Arrays:
    """Arrays for an encoder of ``spec`` downstream: positions and tables of its size, and a table in every block."""
    assert weights.spec is not None
    return shared_to_blocks(resample_arrays(weights.arrays, spec, weights.spec), spec.blocks)


def shared_to_blocks(arrays: Arrays, depth: int) -> Arrays:
    """``arrays`` with the table that a ViT's ``depth`` blocks share in pretraining, if there is one, in each of them.

    So the published code of BEiT and of SimMIM fine-tunes.
    """
    if SHARED_TABLE not in arrays:
        return arrays
    rest = {name: array for name, array in arrays.items() if name != SHARED_TABLE}
    return rest | {f"blocks.{block}.attn.{TABLE}": arrays[SHARED_TABLE].copy() for block in range(depth)}


def encoder_arrays(arrays: Arrays, depth: int) -> Arrays:
    """The encoder of ``depth`` blocks in a pretraining model's ``arrays``, as timm's class takes it strictly."""
    kept = {name: array for name, array in arrays.items() if not name.startswith(HEADS)}
    return shared_to_blocks(kept, depth)


def fit(shapes: Mapping[str, tuple[int, ...]], arrays: Arrays, origin: str, head: str = "head") -> Arrays:
    """Return those of ``arrays`` that ``shapes`` names.

    Raises CheckpointError, which begins with ``origin``, if one is missing or has another shape, or if something of
    ``arrays`` would be left that is no head (:func:`ehm.models.encoder_parts.refuse_unloaded`).
    """
    refuse_unloaded(arrays, shapes, origin, head)
    if problems := misfits(shapes, arrays):
        raise CheckpointError(f"{origin}: does not fit the encoder: {first_of(problems)}")
    return {name: arrays[name] for name in shapes}


def select(
    shapes: Mapping[str, tuple[int, ...]], arrays: Arrays, head: str, origin: str, assumed: tuple[str, ...] = ()
) -> tuple[Arrays, tuple[str, ...]]:
    """Return what of ``arrays`` goes into a network whose parameters have ``shapes``, and notes on what is left.

    The network's head (``head.*``) stays fresh, and so may a norm behind the pooling: they are absent from the result.
    The rest must :func:`fit`. ``assumed`` are notes on what the weights do not say.
    """
    fresh = {name for name in shapes if name.startswith("fc_norm.") and name not in arrays}
    fresh |= {name for name in shapes if name.startswith(f"{head}.")}
    taken = fit({name: shape for name, shape in shapes.items() if name not in fresh}, arrays, origin, head)
    unused = [name for name in arrays if name not in taken]
    notes = [f"encoder from {origin}", *assumed]
    if fresh:
        notes.append("starts afresh: " + groups(fresh))
    if unused:
        notes.append("not used from there: " + groups(unused))
    return taken, tuple(notes)


def _array(tensor: Mapping[str, Any]) -> NDArray[Any]:
    """One tensor of the safetensors format; NumPy has no bfloat16, which is the upper half of a float32."""
    if tensor["dtype"] == "BF16":
        halves = np.frombuffer(tensor["data"], np.uint16)
        return (halves.astype(np.uint32) << 16).view(np.float32).reshape(tensor["shape"])
    return np.frombuffer(tensor["data"], _TYPES[tensor["dtype"]]).reshape(tensor["shape"])


def _floats(arrays: Arrays) -> Arrays:
    return {
        name: array.astype(np.float32, copy=False) if np.issubdtype(array.dtype, np.floating) else array
        for name, array in arrays.items()
    }


def groups(names: Iterable[str]) -> str:
    """Names shortened to their first parts, each with its number of tensors."""
    counts: dict[str, int] = {}
    for name in names:
        first = "decoder" if name.startswith("decoder") else name.partition(".")[0]
        counts[first] = counts.get(first, 0) + 1
    return ", ".join(f"{first} ({count} tensors)" if count > 1 else first for first, count in sorted(counts.items()))


INNER = "encoder."
"""Before the names of the encoder's parameters in the checkpoints of all tasks but classification."""
_TYPES = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8},
    **{"U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_},
}
"""The format's names of NumPy's types."""
