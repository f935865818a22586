"""Write an encoder into folders that others load by name.

FOLDER/encoder/       config.json (timm's), model.safetensors, README.md
       encoder_hf/    config.json (transformers'), model.safetensors, preprocessor_config.json, README.md
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ehm.models.encoder_file import make_encoder_metadata
from ehm.models.handover.card import CardFacts, Usage, write_card_text
from ehm.models.handover.preprocessor import describe_preprocessor
from ehm.models.handover.refusal import NoSuchEncoderError
from ehm.models.handover.timm_config import describe_timm_folder
from ehm.models.handover.transformers_arrays import rename_for_transformers
from ehm.models.handover.transformers_config import TransformersConfig, describe_transformers_folder
from ehm.models.weights import Weights
from ehm.storage.arrays import Arrays
from ehm.storage.writing import replace_folder, report_write_errors, write_json, write_text

__all__ = ["TIMM_FOLDER", "TRANSFORMERS_FOLDER", "write_encoder_folders"]

TIMM_FOLDER = "encoder"
TRANSFORMERS_FOLDER = "encoder_hf"
_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_CARD = "README.md"
_PREPROCESSOR = "preprocessor_config.json"
_PYTORCH = {"format": "pt"}
"""Metadata without which older versions of transformers refuse a file."""
_PROBE_EPSILON = 1e-6
"""Epsilon of the batch norm of a linear probe, as in MAE."""


def write_encoder_folders(
    folder: Path, weights: Weights, facts: CardFacts, encoder_file: Path | None = None
) -> tuple[list[Path], list[str]]:
    """Write the encoder in ``weights``, with its classifier if it has labels, into folders below ``folder``.

    ``encoder_file`` holds the same arrays already: timm's folder shares its bytes if the file system can. Returns the
    folders, and notes on what a library lacks: then its folder is not written, and one of an earlier run removed.
    """
    weights = _fold_probe(weights)
    written = []
    notes = []
    for name, write in ((TIMM_FOLDER, _write_timm_folder), (TRANSFORMERS_FOLDER, _write_transformers_folder)):
        path = folder / name
        try:
            notes += write(path, weights, facts, encoder_file)
            written.append(path)
        except NoSuchEncoderError as error:
            shutil.rmtree(path, ignore_errors=True)
            notes.append(f"no {path.name}/: {error}")
    return written, notes


def _write_timm_folder(path: Path, weights: Weights, facts: CardFacts, encoder_file: Path | None) -> list[str]:
    config = describe_timm_folder(weights)
    labels = weights.provenance.labels
    outputs = "logits" if labels else "features"
    code = [
        "import timm",
        "",
        'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or hf-hub:OWNER/NAME',
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
        f"{outputs} = model(transform(image).unsqueeze(0))",
    ]
    description = f"{_describe_encoder(weights)}, for timm as `{config.values['architecture']}`."
    with replace_folder(path) as temporary:
        write_json(temporary / _CONFIG, config.values)
        if encoder_file is None:
            metadata = _PYTORCH
            if weights.spec is not None:
                provenance = weights.provenance
                described = make_encoder_metadata(weights.spec, provenance.inputs, provenance.labels, provenance.pool)
                metadata = _PYTORCH | described
            _write_arrays(temporary / _WEIGHTS, weights.arrays, metadata)
        else:
            _share_file(encoder_file, temporary / _WEIGHTS)
        usage = Usage("timm", code, config.notes)
        write_text(temporary / _CARD, write_card_text(_name_title(weights), description, usage, facts, labels))
    return [f"{path.name}/: {note}" for note in config.notes]


def _write_transformers_folder(path: Path, weights: Weights, facts: CardFacts, encoder_file: Path | None) -> list[str]:
    config = describe_transformers_folder(weights)
    assert weights.spec is not None
    labels = weights.provenance.labels if config.has_classifier else ()
    notes = []
    if weights.provenance.labels and not labels:
        notes.append(f"its {config.model_type} classifies by other features, so that the classifier is left out")
    preprocessor, differences = describe_preprocessor(weights.provenance.inputs, weights.spec.image_size)
    notes += differences
    description = f"{_describe_encoder(weights)}, for transformers as `{config.model_type}`."
    usage = Usage("transformers", _write_code(config), notes)
    with replace_folder(path) as temporary:
        write_json(temporary / _CONFIG, config.values)
        write_json(temporary / _PREPROCESSOR, preprocessor)
        _write_arrays(temporary / _WEIGHTS, rename_for_transformers(weights, config), _PYTORCH)
        write_text(temporary / _CARD, write_card_text(_name_title(weights), description, usage, facts, labels))
    return [f"{path.name}/: {note}" for note in notes]


def _write_code(config: TransformersConfig) -> list[str]:
    kind = "AutoModelForImageClassification" if config.has_classifier else "AutoModel"
    outputs = "logits = outputs.logits" if config.has_classifier else f"features = {config.features}"
    code = [
        f"from transformers import AutoImageProcessor, {kind}",
        "",
        'processor = AutoImageProcessor.from_pretrained("FOLDER")  # or OWNER/NAME',
        f'model = {kind}.from_pretrained("FOLDER")',
        'outputs = model(**processor(image, return_tensors="pt"))',
        outputs,
    ]
    if config.has_classifier:
        code += ["", f"# AutoModel gives the features instead: {config.features}"]
    return code


def _describe_encoder(weights: Weights) -> str:
    spec = weights.spec
    if spec is None:
        return f"timm's `{weights.timm}`, trained by ehm"
    height, width = spec.image_size
    description = spec.description[0].upper() + spec.description[1:]
    return (
        f"{description}, {spec.width} features wide with {spec.blocks} blocks, of images of {height} x {width} pixels "
        f"in patches of {spec.patch_size}, trained by ehm"
    )


def _name_title(weights: Weights) -> str:
    return "Image classifier" if weights.provenance.labels else "Image encoder"


def _share_file(source: Path, target: Path) -> None:
    """Give the file ``source`` a second name, or copy it where the file system has no hard links."""
    with report_write_errors(target):
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)


def _write_arrays(path: Path, arrays: Arrays, metadata: dict[str, str]) -> None:
    with report_write_errors(path):
        # safetensors writes an array's memory as it lies there, and takes it for row by row
        save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, path, metadata)


def _fold_probe(weights: Weights) -> Weights:
    """Return ``weights`` with one linear layer as classifier, if it is that of a linear probe after a batch norm."""
    head = _name_classifier(weights)
    arrays = weights.arrays
    if f"{head}.0.running_mean" not in arrays:
        return weights
    deviation = np.sqrt(arrays[f"{head}.0.running_var"].astype(np.float64) + _PROBE_EPSILON)
    matrix = arrays[f"{head}.1.weight"] / deviation
    bias = arrays[f"{head}.1.bias"] - matrix @ arrays[f"{head}.0.running_mean"].astype(np.float64)
    folded = {name: array for name, array in arrays.items() if not name.startswith(f"{head}.")}
    folded[f"{head}.weight"] = matrix.astype(np.float32)
    folded[f"{head}.bias"] = bias.astype(np.float32)
    return replace(weights, arrays=folded)


def _name_classifier(weights: Weights) -> str:
    """Return the name of the classifier; that of a network of timm's was noted when it was made."""
    if weights.spec is not None:
        return weights.spec.classifier
    assert weights.checkpoint is not None
    return str(weights.checkpoint.metadata["encoder"].get("pretrained_cfg", {}).get("classifier", "head"))
