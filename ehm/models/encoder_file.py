"""Metadata of ``encoder.safetensors``, which say what its encoder is, in the safetensors format.

    encoder   JSON: family, sizes and heads (:func:`ehm.models.shapes.spec_to_json`), and grid, norm and activation
    inputs    JSON: mean, std, crop_pct, crop_mode, interpolation (:class:`ehm.config.inputs.InputSpec`)
    mean, std JSON: these two once more, for the versions that read nothing else
    labels    JSON: the names of a classifier's classes, if there is one, and pool, what it sees

Files of older versions have ``mean`` and ``std`` alone, files of others none of these; timm's folders from the Hugging
Face Hub have a ``config.json`` beside the weights instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from safetensors import SafetensorError, safe_open

from ehm.config.encoders import PLAIN, EncoderSpec, VitSpec
from ehm.config.inputs import InputSpec
from ehm.errors import CheckpointError
from ehm.models.shapes import spec_from_json, spec_to_json
from ehm.models.weights import Pool
from ehm.storage.reading import shorten

__all__ = ["FileFacts", "make_encoder_metadata", "read_facts"]

_NORMS = {"layer": "layer_norm", "rms": "rms_norm"}
"""Names of the kinds of norm in the metadata."""
_HUB_CONFIG = "config.json"


@dataclass(frozen=True)
class FileFacts:
    """Facts that a file of weights says about itself; None for one that it does not say."""

    spec: EncoderSpec | None = None
    inputs: InputSpec | None = None
    labels: tuple[str, ...] = ()
    pool: Pool | None = None


def make_encoder_metadata(
    spec: EncoderSpec, inputs: InputSpec, labels: Sequence[str] = (), pool: Pool = "avg"
) -> dict[str, str]:
    """Return the metadata of a file that holds an encoder of ``spec`` under timm's names.

    With ``labels`` it holds a classifier too, which sees what ``pool`` says.
    """
    values = inputs.to_json()
    classifier = {"labels": json.dumps(list(labels)), "pool": json.dumps(pool)} if labels else {}
    return {
        **classifier,
        "encoder": json.dumps({**spec_to_json(spec), "grid": list(spec.grid), **_describe_layers(spec)}),
        "inputs": json.dumps(values),
        "mean": json.dumps(values["mean"]),
        "std": json.dumps(values["std"]),
    }


def read_facts(path: Path) -> FileFacts:
    """Read the facts that a file of weights, or timm's ``config.json`` beside it, says about its encoder.

    Raises CheckpointError if the metadata of ehm cannot be read, or describe what this version does not build.
    """
    metadata = _read_metadata(path)
    if "encoder" not in metadata and "mean" not in metadata:
        return FileFacts(inputs=_read_hub_inputs(path.with_name(_HUB_CONFIG)))
    try:
        spec = None
        if "encoder" in metadata:
            spec = _read_spec(json.loads(metadata["encoder"]))
        if "inputs" in metadata:
            values = json.loads(metadata["inputs"])
        else:
            values = {"mean": json.loads(metadata["mean"]), "std": json.loads(metadata["std"])}
        labels = tuple(map(str, json.loads(metadata.get("labels", "[]"))))
        pool = json.loads(metadata.get("pool", "null"))
        if pool not in (None, *get_args(Pool)):
            raise ValueError(f"pool {pool!r} is unknown")
        return FileFacts(spec, InputSpec.from_mapping(values), labels, pool)
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError, RecursionError) as error:
        reason = shorten(str(error))
        raise CheckpointError(f"{path}: its metadata describe no encoder that this version knows: {reason}") from None


def _read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file, and none of any other."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, "np") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file: {error}") from None


def _describe_layers(spec: EncoderSpec) -> dict[str, Any]:
    """Return the norm and the activation of an encoder, for readers that build it from sizes alone."""
    form = spec.form if isinstance(spec, VitSpec) else PLAIN
    return {"norm": _NORMS[form.norm], "norm_eps": form.norm_epsilon, "activation": form.mlp}


def _read_spec(values: dict[str, Any]) -> EncoderSpec:
    """Rebuild the spec; ValueError if the encoder has a norm or an activation that ehm does not build."""
    said = {key: values.pop(key) for key in ("norm", "norm_eps", "activation")}
    grid = values.pop("grid")
    spec = spec_from_json(values)
    for key, value in _describe_layers(spec).items():
        if said[key] != value:
            raise ValueError(f"{key} is not {value}")
    if list(spec.grid) != grid:
        raise ValueError(f"grid {grid} is not that of image_size {list(spec.image_size)}")
    return spec


def _read_hub_inputs(config: Path) -> InputSpec | None:
    """Read how timm's ``config.json`` wants images to be prepared; None if the file is not there or not timm's."""
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(values, Mapping) or not isinstance(values.get("pretrained_cfg"), Mapping):
        return None  # any program may have a file of that name beside its weights
    try:
        return InputSpec.from_pretrained_cfg(values["pretrained_cfg"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{config}: pretrained_cfg: {error}") from None
