"""What ``encoder.safetensors`` says about its encoder, in the metadata of the safetensors format.

    encoder   JSON: family, sizes and heads (:func:`ehm.models.shapes.describe`), and grid, norm and activation
    inputs    JSON: mean, std, crop_pct, crop_mode, interpolation (:class:`ehm.config.inputs.InputSpec`)
    mean, std JSON: these two once more, for the versions that read nothing else

Files of older versions have ``mean`` and ``std`` alone, files of others none of these; timm's folders from the Hugging
Face Hub have a ``config.json`` beside the weights instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ehm.config.encoders import EncoderSpec
from ehm.config.inputs import InputSpec
from ehm.errors import CheckpointError
from ehm.models.shapes import describe, described
from ehm.storage.reading import shorten

__all__ = ["FileFacts", "encoder_metadata", "read_facts"]

_FIXED = {"norm": "layer_norm", "norm_eps": 1e-6, "activation": "gelu"}
"""What is the same in all encoders that ehm builds, and may change one day."""
_HUB_CONFIG = "config.json"


@dataclass(frozen=True)
class FileFacts:
    """What a file of weights says about itself; None is what it does not say."""

    spec: EncoderSpec | None = None
    inputs: InputSpec | None = None


def encoder_metadata(spec: EncoderSpec, inputs: InputSpec) -> dict[str, str]:
    """Return the metadata of a file that holds an encoder of ``spec`` under timm's names."""
    values = inputs.to_json()
    return {
        "encoder": json.dumps({**describe(spec), "grid": list(spec.grid), **_FIXED}),
        "inputs": json.dumps(values),
        "mean": json.dumps(values["mean"]),
        "std": json.dumps(values["std"]),
    }


def read_facts(path: Path) -> FileFacts:
    """Read what a file of weights, or the ``config.json`` of timm beside it, says about its encoder.

    Raises CheckpointError if the metadata of ehm cannot be read, or describe what this version does not build.
    """
    named = _metadata(path)
    if "encoder" not in named and "mean" not in named:
        return FileFacts(inputs=_hub_inputs(path.with_name(_HUB_CONFIG)))
    try:
        spec = _spec(json.loads(named["encoder"])) if "encoder" in named else None
        values = {key: json.loads(named[key]) for key in ("mean", "std")}
        if "inputs" in named:
            values = json.loads(named["inputs"])
        return FileFacts(spec, InputSpec.from_mapping(values))
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError, RecursionError) as error:
        reason = shorten(str(error))
        raise CheckpointError(f"{path}: its metadata describe no encoder that this version knows: {reason}") from None


def _metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; none of any other."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, "np") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file: {error}") from None


def _spec(values: dict[str, Any]) -> EncoderSpec:
    """Rebuild the spec; ValueError if the encoder has a norm or an activation that ehm does not build."""
    for key, value in _FIXED.items():
        if values.pop(key) != value:
            raise ValueError(f"{key} is not {value}")
    grid = values.pop("grid")
    spec = described(values)
    if list(spec.grid) != grid:
        raise ValueError(f"grid {grid} is not that of image_size {list(spec.image_size)}")
    return spec


def _hub_inputs(config: Path) -> InputSpec | None:
    """What timm's ``config.json`` says about images, if the file is there and is timm's."""
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    facts = values.get("pretrained_cfg") if isinstance(values, Mapping) else None
    if not isinstance(facts, Mapping):
        return None
    try:
        return InputSpec.from_pretrained_cfg(facts)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{config}: pretrained_cfg: {error}") from None
