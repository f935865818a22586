"""Encoder weights as plain arrays: where they lie, what sizes they have, and what of them a network takes.

A source is a run of ours, one of its checkpoints, or a file. Files keep the names of timm and of the published MAE
checkpoints, which are the same for an encoder. No framework here: a backend passes its own reader for files that only
its framework can read, and copies the arrays into its network. Reading a file never executes anything in it.

Shapes: N = h * w patches, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from ehm import checkpoint
from ehm.backends.base import Arrays
from ehm.backends.common import first_of, misfits
from ehm.config import ModelSource, TrainConfig, Triple
from ehm.encoders import VIT_PRESETS, VitSpec
from ehm.errors import CheckpointError, ConfigError
from ehm.resample import bicubic

__all__ = [
    "MEAN",
    "STD",
    "ReadFile",
    "Weights",
    "at_size",
    "describe",
    "fit",
    "is_bare_file",
    "of_checkpoint",
    "of_file",
    "read_safetensors",
    "read_weights",
    "resample_positions",
    "select",
]

MEAN: Triple = (0.485, 0.456, 0.406)
STD: Triple = (0.229, 0.224, 0.225)
"""ImageNet's, with which the published MAE checkpoints were trained."""

ReadFile = Callable[[Path], Arrays]
"""Reads a file of weights: arrays by name, or a CheckpointError."""


@dataclass(frozen=True)
class Weights:
    """Arrays under timm's names, float32 where floating, and the sizes of their encoder, or the name of timm's model.

    ``image_size`` is that of timm's model; ``mean`` and ``std`` normalised the images of training.
    """

    arrays: Arrays
    spec: VitSpec | None = None
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
        return of_file(read_file(path), source)
    if path.is_file() or path.is_dir():
        return of_checkpoint(*checkpoint.read_model(path.parent if path.is_file() else path))
    raise CheckpointError(
        f"model.init {source.init}: no such file or folder; it takes a run folder, a .safetensors or .pth file, "
        "timm:NAME or scratch"
    )


def is_bare_file(source: ModelSource) -> bool:
    """Whether ``source.init`` is a file of weights by itself, not that of a checkpoint."""
    path = Path(source.init)
    return path.is_file() and not (path.parent / "state.json").is_file()


def of_checkpoint(arrays: Arrays, meta: Mapping[str, Any]) -> Weights:
    """What :func:`ehm.checkpoint.read_model` gave."""
    data = meta["config"]["data"]
    weights = Weights(_floats(arrays), mean=tuple(data["mean"]), std=tuple(data["std"]))
    if meta["kind"] == "pretrain":
        return replace(weights, spec=TrainConfig.model_validate(meta["config"]).spec)
    encoder = dict(meta["encoder"])
    size = (encoder["image_size"][0], encoder["image_size"][1])
    if encoder.pop("family") == "timm":
        return replace(weights, timm=encoder["name"], image_size=size)
    return replace(weights, spec=VitSpec(**{**encoder, "image_size": size}))


def of_file(arrays: Arrays, source: ModelSource) -> Weights:
    """A bare file's: sizes from its shapes, heads from the published ViT of that width, the grid taken as square.

    Raises CheckpointError where they are no ViT's, or ``source`` has to say what the shapes leave open.
    """
    missing = [name for name in _NEEDED if name not in arrays]
    if missing:
        raise CheckpointError(f"{source.init}: not a ViT with timm's names: {', '.join(missing)} missing")
    width, channels, patch, across = arrays["patch_embed.proj.weight"].shape
    if channels != 3 or patch != across:
        raise CheckpointError(
            f"{source.init}: its patches are {patch} x {across} of {channels} channels; only square ones of 3 load"
        )
    depth = 1 + max(int(name.split(".")[1]) for name in arrays if name.startswith("blocks."))
    heads = source.heads or {preset["width"]: preset["heads"] for preset in VIT_PRESETS.values()}.get(width)
    if heads is None:
        raise CheckpointError(
            f"{source.init}: no published ViT is {width} wide; give the number of heads as model.heads"
        )
    patches = arrays["pos_embed"].shape[1] - 1
    side = math.isqrt(patches)
    size = (side * patch, side * patch)
    if side * side != patches:
        size = source.image_size or (0, 0)
        if (size[0] // patch) * (size[1] // patch) != patches:
            raise CheckpointError(
                f"{source.init}: its {patches} patches make no square; give the height and width as model.image_size"
            )
    ratio = arrays["blocks.0.mlp.fc1.weight"].shape[0] / width
    return Weights(_floats(arrays), VitSpec(size, patch, width, depth, heads, ratio))


def at_size(spec: VitSpec, source: ModelSource) -> VitSpec:
    """``spec`` at the image size that is asked for; what ``source`` says about the other sizes must be true."""
    for key in ("width", "depth", "heads"):
        wanted, found = getattr(source, key), getattr(spec, key)
        if wanted is not None and wanted != found:
            raise CheckpointError(f"model.{key} {wanted}: the weights in {source.init} have {key} {found}")
    size = source.image_size or spec.image_size
    if size[0] % spec.patch_size or size[1] % spec.patch_size:
        raise ConfigError(f"model.image_size {list(size)}: not a multiple of the weights' patch size {spec.patch_size}")
    return replace(spec, image_size=size)


def resample_positions(positions: NDArray[Any], new: tuple[int, int], old: tuple[int, int]) -> NDArray[np.float32]:
    """Position embeddings (1, 1 + N, D) of an ``old`` (h, w) grid for a ``new`` one; the class token's stays.

    Bicubic with antialiasing, as timm's ``resample_abs_pos_embed`` does with ``torch.nn.functional.interpolate``.
    """
    token, patches = np.split(np.asarray(positions, np.float64), [1], axis=1)
    grid = patches.reshape(*old, -1)
    grid = np.einsum("yh,xw,hwd->yxd", bicubic(new[0], old[0]), bicubic(new[1], old[1]), grid, optimize=True)
    return np.concatenate([token, grid.reshape(1, new[0] * new[1], -1)], axis=1).astype(np.float32)


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
        notes.append("starts afresh: " + _groups(fresh))
    if unused:
        notes.append("not used from there: " + _groups(unused))
    return taken, tuple(notes)


def describe(spec: VitSpec) -> dict[str, Any]:
    """``spec`` as plain JSON, from which a checkpoint's reader rebuilds it."""
    return {"family": "vit", **asdict(spec), "image_size": list(spec.image_size)}


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


def _groups(names: Iterable[str]) -> str:
    """Names shortened to their first parts, each with its number of tensors."""
    counts: dict[str, int] = {}
    for name in names:
        first = "decoder" if name.startswith(("decoder", "mask_token")) else name.partition(".")[0]
        counts[first] = counts.get(first, 0) + 1
    return ", ".join(f"{first} ({count} tensors)" if count > 1 else first for first, count in sorted(counts.items()))


_NEEDED = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
_TYPES = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8},
    **{"U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_},
}
"""The format's names of NumPy's types."""
