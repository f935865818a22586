"""Encoder weights as plain arrays: where they lie, what sizes they have, and what of them a network takes.

A source is a run of ours, one of its checkpoints, or a file, under timm's names or those of a published checkpoint
(:mod:`ehm.published`). No framework here: a backend passes its own reader for files that only its framework can read,
and copies the arrays into its network. Reading a file never executes anything in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize, safe_open

from ehm import checkpoint
from ehm.backends.base import Arrays
from ehm.backends.common import first_of, misfits
from ehm.config import ModelSource, TrainConfig, Triple
from ehm.encoders import EncoderSpec
from ehm.errors import CheckpointError
from ehm.published import timm_names
from ehm.resample import TABLE, resample_arrays
from ehm.sizes import SHARED_TABLE, described, sizes

__all__ = [
    "HEADS",
    "MEAN",
    "STD",
    "ReadFile",
    "Weights",
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

MEAN: Triple = (0.485, 0.456, 0.406)
STD: Triple = (0.229, 0.224, 0.225)
"""ImageNet's, with which most published checkpoints were trained."""
_HALF: Triple = (0.5, 0.5, 0.5)
"""Mean and std of BEiT's pretraining."""

ReadFile = Callable[[Path], Arrays]
"""Reads a file of weights: arrays by name, or a CheckpointError."""


@dataclass(frozen=True)
class Weights:
    """Arrays under timm's names, float32 where floating, and the sizes of their encoder, or the name of timm's model.

    ``image_size`` is that of timm's model; ``mean`` and ``std`` normalised the images of training.
    """

    arrays: Arrays
    spec: EncoderSpec | None = None
    timm: str | None = None
    image_size: tuple[int, int] | None = None
    mean: Triple = MEAN
    std: Triple = STD


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
        weights = of_file(read_file(path), source)
        return replace(weights, **_moments(path)) if path.suffix == ".safetensors" else weights
    if path.is_file() or path.is_dir():
        return of_checkpoint(*checkpoint.read_model(path.parent if path.is_file() else path), source.init)
    raise CheckpointError(
        f"model.init {source.init}: no such file or folder; it takes a run folder, a .safetensors or .pth file, "
        "timm:NAME or scratch"
    )


def is_bare_file(source: ModelSource) -> bool:
    """Whether ``source.init`` is a file of weights by itself, not that of a checkpoint."""
    path = Path(source.init)
    return path.is_file() and not (path.parent / "state.json").is_file()


def of_checkpoint(arrays: Arrays, meta: Mapping[str, Any], origin: str) -> Weights:
    """What :func:`ehm.checkpoint.read_model` gave; CheckpointError, of ``origin``, where that is no encoder."""
    if meta["kind"] == "tokenizer":
        raise CheckpointError(f"{origin}: holds a tokenizer, which is for model.tokenizer, and no encoder")
    if meta["kind"] not in ("pretrain", "classifier"):
        parts = {name: name.partition(INNER)[2] for name in arrays}
        arrays = {inner: arrays[name] for name, inner in parts.items() if inner}
    data = meta["config"]["data"]
    weights = Weights(_floats(arrays), mean=tuple(data["mean"]), std=tuple(data["std"]))
    if meta["kind"] == "pretrain":
        return replace(weights, spec=TrainConfig.model_validate(meta["config"]).spec)
    encoder = meta["encoder"]
    if encoder["family"] == "timm":
        return replace(weights, timm=encoder["name"], image_size=tuple(encoder["image_size"]))
    return replace(weights, spec=described(encoder))


def of_file(arrays: Arrays, source: ModelSource) -> Weights:
    """A bare file's, published or ours; see :func:`ehm.sizes.sizes` for what is read from its shapes, and its errors.

    Its images are taken as normalised with BEiT's mean and std where it has BEiT's head, else with ImageNet's.
    """
    arrays = timm_names(arrays)
    weights = Weights(_floats(arrays), sizes(arrays, source))
    return replace(weights, mean=_HALF, std=_HALF) if "lm_head.weight" in arrays else weights


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


def fit(shapes: Mapping[str, tuple[int, ...]], arrays: Arrays, origin: str) -> Arrays:
    """Those of ``arrays`` that ``shapes`` names; a CheckpointError, which begins with ``origin``, where one differs."""
    if problems := misfits(shapes, arrays):
        raise CheckpointError(f"{origin}: does not fit the encoder: {first_of(problems)}")
    return {name: arrays[name] for name in shapes}


def select(
    shapes: Mapping[str, tuple[int, ...]], arrays: Arrays, head: str, origin: str
) -> tuple[Arrays, tuple[str, ...]]:
    """What of ``arrays`` goes into a network whose parameters have ``shapes``, and notes on what is left.

    Its head (``head.*``) stays fresh, and so may a norm behind the average: they are absent from the result. The rest
    must :func:`fit`.
    """
    fresh = {name for name in shapes if name.startswith("fc_norm.") and name not in arrays}
    fresh |= {name for name in shapes if name.startswith(f"{head}.")}
    taken = fit({name: shape for name, shape in shapes.items() if name not in fresh}, arrays, origin)
    unused = [name for name in arrays if name not in taken]
    notes = [f"encoder from {origin}"]
    if fresh:
        notes.append("starts afresh: " + groups(fresh))
    if unused:
        notes.append("not used from there: " + groups(unused))
    return taken, tuple(notes)


def _moments(path: Path) -> dict[str, Any]:
    """Mean and std that a file of ours names in its metadata; nothing of another's."""
    with safe_open(path, "np") as file:
        named = file.metadata() or {}
    try:
        return {key: tuple(map(float, json.loads(named[key]))) for key in ("mean", "std")}
    except (KeyError, TypeError, ValueError):
        return {}


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
HEADS = ("decoder", "mask_token", "lm_head")
"""Beginnings of the names of what pretraining has beside the encoder."""
_TYPES = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8},
    **{"U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_},
}
"""The format's names of NumPy's types."""
