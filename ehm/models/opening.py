"""Open the model that a configuration names: a run, one of its checkpoints, or weights of others.

Weights of others are a file or a folder, with timm's names or others (:mod:`ehm.models.published`). No framework is
imported here: the torch backend passes torch's own reader for torch's files. Reading a file never executes its content.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from ehm.config import ModelSource, TrainConfig
from ehm.config.inputs import InputSpec
from ehm.config.pixel_format import RGB_BYTES, PixelFormat
from ehm.errors import CheckpointError
from ehm.models.encoder_file import read_facts
from ehm.models.hub import HUB, download_repository
from ehm.models.published.opening import open_hub_folder, open_weights_file
from ehm.models.shapes import spec_from_json
from ehm.models.weights import Pool, Provenance, Weights
from ehm.storage.arrays import Arrays, to_float32
from ehm.storage.checkpoint import Checkpoint, find_checkpoint, is_hub_folder
from ehm.storage.torch_file import flatten_tensors, read_torch_file

__all__ = [
    "ReadFile",
    "find_pixels",
    "names_weights",
    "open_model",
    "read_safetensors",
    "read_weights_file",
    "take_weights",
]

ReadFile = Callable[[Path], Arrays]
"""A function that reads the arrays of a file of weights by name, or raises CheckpointError."""

_ENCODER = "encoder."
"""Before the names of the encoder's parameters in the checkpoints of all tasks but classification."""
_TYPES = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8},
    **{"U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_},
}
"""NumPy's types by their names in the safetensors format."""


def read_safetensors(path: Path) -> Arrays:
    """Read the arrays of a ``.safetensors`` file, bfloat16 as float32.

    Raises CheckpointError if the file is none, or holds other types.
    """
    try:
        # safetensors.numpy would refuse bfloat16, in which many weights are published
        return {name: _to_array(value) for name, value in deserialize(path.read_bytes())}
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file: {error}") from None
    except KeyError as error:
        raise CheckpointError(f"{path}: holds tensors of type {error}; {', '.join(_TYPES)} and BF16 load") from None


def read_weights_file(path: Path) -> Arrays:
    """Read the arrays of a ``.safetensors`` file, or of a file of torch's, without torch, bfloat16 as float32.

    Raises CheckpointError as :func:`read_safetensors` and :func:`read_torch_file` do, or if the file has no names.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    content = read_torch_file(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not tensors by name")
    return flatten_tensors(content, _keep_array)


def names_weights(source: ModelSource) -> bool:
    """Tell whether ``source`` names weights that can be opened: neither a network of timm's nor an untrained one."""
    return source.init != "scratch" and not source.init.startswith("timm:")


def open_model(source: ModelSource, read_file: ReadFile = read_weights_file) -> Weights:
    """Open what ``source.init`` names: a run folder, a checkpoint or a file of it, a file of weights or a Hub's folder.

    Everything is read once: pass the result on instead of opening it again. Raises CheckpointError if nothing is there,
    if it was altered or holds no encoder, or if the sizes of the encoder in a file cannot be inferred.
    """
    path = Path(source.init)
    if source.init.startswith(HUB):
        path = download_repository(source.init)
    if is_hub_folder(path):
        return open_hub_folder(source, path, read_file)
    checkpoint = find_checkpoint(path)
    if checkpoint is not None:
        return take_weights(checkpoint, source.init)
    if path.is_file():
        return open_weights_file(source, read_file)
    raise CheckpointError(
        f"model.init {source.init}: no such file or folder; it takes a run folder, a .safetensors or .pth file, a "
        "folder in Hugging Face's layout, timm:NAME, hf:OWNER/NAME or scratch"
    )


def find_pixels(init: str) -> PixelFormat:
    """Return the channels and the depth of the images that the weights ``init`` are for, without reading their arrays.

    Weights that do not say, or do not exist, are taken as weights for photographs.
    """
    path = Path(init)
    if not path.exists():
        return RGB_BYTES
    checkpoint = find_checkpoint(path)
    if checkpoint is not None:
        return _read_inputs(checkpoint).pixels
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        return RGB_BYTES
    inputs = read_facts(file).inputs
    return RGB_BYTES if inputs is None else inputs.pixels


def take_weights(checkpoint: Checkpoint, named: str | None = None) -> Weights:
    """Return the encoder in ``checkpoint``.

    Raises CheckpointError, which begins with ``named`` or else with the folder, if it holds none.
    """
    kind = checkpoint.kind
    if kind == "tokenizer":
        raise CheckpointError(
            f"{named or checkpoint.folder}: holds a tokenizer, which is for model.tokenizer, and no encoder"
        )
    labels: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()
    pool: Pool = "avg"
    if kind == "classifier":
        labels = tuple(checkpoint.metadata["classes"])
        thresholds = tuple(checkpoint.metadata.get("thresholds", ()))
        pool = checkpoint.metadata["config"]["pool"]
    arrays = checkpoint.model
    if kind not in ("pretrain", "classifier"):  # there the encoder is a part of a network, at any depth
        arrays = _take_encoder(arrays)
    arrays = to_float32(arrays)
    origin = str(checkpoint.folder)
    provenance = Provenance(
        origin, kind, checkpoint.model_sha256, _read_inputs(checkpoint), labels, pool, thresholds=thresholds
    )
    if kind == "pretrain":  # its configuration has all sizes; a task's may leave them to the weights it began with
        spec = TrainConfig.model_validate(checkpoint.metadata["config"]).spec
        return Weights(arrays, provenance, spec, checkpoint=checkpoint)
    encoder = checkpoint.metadata["encoder"]
    if encoder["family"] == "timm":
        height, width = encoder["image_size"]
        return Weights(arrays, provenance, timm=encoder["name"], image_size=(height, width), checkpoint=checkpoint)
    return Weights(arrays, provenance, spec_from_json(encoder), checkpoint=checkpoint)


def _read_inputs(checkpoint: Checkpoint) -> InputSpec:
    """Return how images were prepared for what ``checkpoint`` holds."""
    metadata = checkpoint.metadata
    # older checkpoints say only in their configuration how pixels were normalised
    return InputSpec.from_mapping({**metadata["config"].get("data", {}), **metadata.get("inputs", {})})


def _take_encoder(arrays: Arrays) -> Arrays:
    """Return the arrays below ``encoder.``, under the rest of their names."""
    taken = {}
    for name, array in arrays.items():
        _, found, inner = name.partition(_ENCODER)
        if found:
            taken[inner] = array
    return taken


def _keep_array(value: Any) -> NDArray[Any] | None:
    """Return ``value`` if it is an array; None for anything else."""
    return value if isinstance(value, np.ndarray) else None


def _to_array(tensor: Mapping[str, Any]) -> NDArray[Any]:
    """Turn one tensor of the safetensors format into an array."""
    if tensor["dtype"] == "BF16":
        # NumPy has no bfloat16, which is the upper half of a float32
        halves = np.frombuffer(tensor["data"], np.uint16)
        return (halves.astype(np.uint32) << 16).view(np.float32).reshape(tensor["shape"])
    return np.frombuffer(tensor["data"], _TYPES[tensor["dtype"]]).reshape(tensor["shape"])
