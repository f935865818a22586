"""A folder in the layout of the Hugging Face Hub: settings in JSON beside weights, of transformers, OpenCLIP or timm.

    config.json                transformers' (``model_type``) or timm's (``architecture``)
    open_clip_config.json      OpenCLIP's, instead
    model.safetensors          the weights; also in shards that ``model.safetensors.index.json`` lists
    pytorch_model.bin          the same in torch's format, of which tensors alone are read
    preprocessor_config.json   how images are prepared

Nothing in these files is executed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ehm.config.inputs import InputSpec
from ehm.errors import CheckpointError
from ehm.models.published.facts import Published
from ehm.models.published.hub_inputs import read_openclip_inputs, read_processor
from ehm.models.published.hub_models import HubModel, describe_openclip, describe_timm
from ehm.models.published.hub_transformers import describe_transformers
from ehm.models.published.settings import Settings
from ehm.models.published.table import convert_to_timm
from ehm.models.shapes_vit import count_parts
from ehm.storage.arrays import Arrays
from ehm.storage.reading import hash_file, read_json

__all__ = ["HubFolder", "read_hub_folder"]

_CONFIG = "config.json"
_OPENCLIP_CONFIG = "open_clip_config.json"
_PROCESSOR = "preprocessor_config.json"
_WEIGHTS = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
"""Names of a file that has all weights, the safest first."""
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
"""Names of a file that tells the shard of every tensor."""


@dataclass(frozen=True)
class HubFolder:
    """An encoder in a folder: its arrays under timm's names, what the settings say of it, and a digest of the weights.

    ``labels`` are the names of a classifier's classes, empty if the settings have none.
    """

    published: Published
    model: HubModel
    inputs: InputSpec | None
    labels: tuple[str, ...]
    sha256: str


def read_hub_folder(folder: Path, read_file: Callable[[Path], Arrays]) -> HubFolder:
    """Read the encoder in ``folder``, whose files of weights ``read_file`` reads.

    Raises CheckpointError, one sentence that names the file and the key, if the settings ask for an encoder that ehm
    does not have, weights are missing, or these are not as large as the settings say.
    """
    files = _list_weight_files(folder)
    arrays: Arrays = {}
    for file in files:
        arrays |= read_file(file)
    published = convert_to_timm(arrays)
    if (folder / _CONFIG).is_file():
        settings = Settings.read(folder / _CONFIG)
    else:
        settings = Settings.read(folder / _OPENCLIP_CONFIG)
    model = _describe(settings, published)
    _check_sizes(published.arrays, model, folder)
    inputs = _read_inputs(folder, settings, model)
    return HubFolder(published, model, inputs, _read_labels(settings), _hash_files(files))


def _describe(settings: Settings, published: Published) -> HubModel:
    if "architecture" in settings:
        return describe_timm(settings, published.facts)
    if "model_cfg" in settings:
        return describe_openclip(settings, published.facts)
    return describe_transformers(settings, published.facts)


def _list_weight_files(folder: Path) -> list[Path]:
    """Return the files that together have all weights, or raise CheckpointError if there are none."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
    for name in _INDICES:
        if (folder / name).is_file():
            return _list_shards(folder / name)
    raise CheckpointError(f"{folder}: has settings, and no weights: {_WEIGHTS[0]}, {_INDICES[0]} or {_WEIGHTS[2]}")


def _list_shards(index: Path) -> list[Path]:
    """Return the shards that ``index`` lists; CheckpointError if one is missing or lies elsewhere."""
    content = read_json(index, CheckpointError, "an index of shards in JSON")
    places = content.get("weight_map") if isinstance(content, Mapping) else None
    if not isinstance(places, Mapping) or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{index}: not an index of shards: weight_map is no table of names")
    files = []
    for name in sorted(set(places.values())):
        # a shard lies beside its index: another path would read any file of this machine
        if Path(name).name != name or not (index.parent / name).is_file():
            raise CheckpointError(f"{index}: lists {name}, which is no file beside it")
        files.append(index.parent / name)
    return files


def _hash_files(files: list[Path]) -> str:
    """Return the SHA-256 of a file; of several, that of their digests one after the other."""
    digests = [hash_file(file) for file in files]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _read_inputs(folder: Path, settings: Settings, model: HubModel) -> InputSpec | None:
    """Return how images are prepared; None if nothing in the folder, and no name of its arrays, says it."""
    default = model.facts.inputs
    if "pretrained_cfg" in settings:
        return settings.section("pretrained_cfg").build(InputSpec.from_pretrained_cfg)
    if "preprocess_cfg" in settings:
        return read_openclip_inputs(settings.section("preprocess_cfg"), default or InputSpec())
    file = folder / _PROCESSOR
    if not file.is_file():
        return default
    return read_processor(Settings.read(file), default or InputSpec())


def _read_labels(settings: Settings) -> tuple[str, ...]:
    """Return the names of classes, in their order; none if the settings have no complete list."""
    names = settings.table("id2label")
    labels = []
    for index in range(len(names)):
        label = names.get(str(index))
        if not isinstance(label, str):
            return ()
        labels.append(label)
    return tuple(labels)


def _check_sizes(arrays: Arrays, model: HubModel, folder: Path) -> None:
    """Raise CheckpointError if the weights have other sizes than the settings say."""
    patches = arrays.get("patch_embed.proj.weight")
    found: dict[str, Any] = {}
    if patches is not None and patches.ndim == 4:
        found = {"width": patches.shape[0], "patch_size": patches.shape[3]}
    if model.depth is not None:
        found["depth"] = count_parts(arrays, r"blocks\.(\d+)\.")
    for key, value in found.items():
        said = getattr(model, key)
        if said is not None and said != value:
            raise CheckpointError(f"{folder}: its settings say {key.replace('_', ' ')} {said}, and its weights {value}")
