"""Open published weights: a bare file, or a folder in the layout of the Hugging Face Hub.

What a file does not say is taken from its family, and said in a note. What a configuration sets goes first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ehm.config import ModelSource
from ehm.config.encoders import PLAIN, VIT_PRESETS, EncoderSpec
from ehm.config.inputs import IMAGENET_MEAN, InputSpec
from ehm.config.pixel_format import PixelFormat
from ehm.models.encoder_file import FileFacts, read_facts
from ehm.models.encoder_parts import refuse_foreign_parts
from ehm.models.published.facts import Published, PublishedFacts
from ehm.models.published.hub_folder import read_hub_folder
from ehm.models.published.hub_models import HubModel
from ehm.models.published.table import UNNAMED, convert_to_timm
from ehm.models.shapes import check_positions, infer_spec, list_assumptions
from ehm.models.weights import Pool, Provenance, Weights, number_labels
from ehm.storage.arrays import Arrays, to_float32
from ehm.storage.reading import hash_file

__all__ = ["open_hub_folder", "open_weights_file"]

_OWN_FILE = "model.safetensors"
"""Name of the file of weights in the folder that a run ends with."""


def open_weights_file(source: ModelSource, read_file: Callable[[Path], Arrays]) -> Weights:
    """Open the file ``source.init``: one of ours, which says what its encoder is, or one of others.

    For files of others see :func:`ehm.models.shapes.infer_spec` for what is read from shapes, and its errors. Raises
    CheckpointError as :func:`ehm.models.encoder_parts.refuse_foreign_parts` does.
    """
    path = Path(source.init)
    facts = read_facts(path)
    if facts.spec is not None:
        return _open_own_file(path, str(path), facts, read_file)
    arrays = read_file(path)
    published = convert_to_timm(arrays)
    arrays = to_float32(published.arrays)
    # before the sizes are read, which need not make sense for the encoder of another family
    refuse_foreign_parts(arrays, source.init)
    described = _describe_source(source, published, HubModel(published.facts))
    spec = infer_spec(arrays, described)
    assumptions = list_assumptions(spec, described)
    if published.facts.assumed:
        assumptions.append(published.facts.assumed)
    inputs = facts.inputs
    if inputs is None:
        inputs = published.facts.inputs or _assume_inputs(spec.channels)
        assumptions.append(f"mean {list(inputs.mean)} and std {list(inputs.std)} (data.mean, data.std)")
    notes = list(published.notes)
    if assumptions:
        family = "" if published.family == UNNAMED else f", as of {published.family}"
        notes.append(f"the file does not say all of its encoder; assumed{family}: {', '.join(assumptions)}")
    return _assemble(arrays, spec, inputs, str(path), hash_file(path), tuple(notes))


def open_hub_folder(source: ModelSource, path: Path, read_file: Callable[[Path], Arrays]) -> Weights:
    """Open the folder ``path``, in the layout of the Hugging Face Hub, which ``source.init`` names.

    Raises CheckpointError as :func:`ehm.models.published.hub_folder.read_hub_folder` does.
    """
    own_file = path / _OWN_FILE
    if own_file.is_file():
        facts = read_facts(own_file)
        if facts.spec is not None:
            # the folder of a run of ours, whose file says more than a config.json can
            return _open_own_file(own_file, source.init, facts, read_file)
    folder = read_hub_folder(path, read_file)
    arrays = to_float32(folder.published.arrays)
    refuse_foreign_parts(arrays, source.init)
    spec = infer_spec(arrays, _describe_source(source, folder.published, folder.model))
    inputs = folder.inputs
    notes = list(folder.published.notes)
    if inputs is None:
        inputs = _assume_inputs(spec.channels)
        notes.append(
            f"the folder does not say how images are prepared; assumed: mean {list(inputs.mean)} and std "
            f"{list(inputs.std)} (data.mean, data.std)"
        )
    return _assemble(arrays, spec, inputs, source.init, folder.sha256, tuple(notes), folder.labels)


def _assume_inputs(channels: int) -> InputSpec:
    """Return the preparation of images for weights that say nothing of it: ImageNet's, or 0.5 of other channels."""
    if channels == len(IMAGENET_MEAN):
        return InputSpec()
    half = (0.5,) * channels
    return InputSpec(half, half, pixels=PixelFormat(channels))


def _open_own_file(path: Path, origin: str, facts: FileFacts, read_file: Callable[[Path], Arrays]) -> Weights:
    """Open a file of ours, which says in its metadata what its encoder is."""
    assert facts.spec is not None
    arrays = to_float32(read_file(path))
    refuse_foreign_parts(arrays, origin)
    check_positions(arrays, facts.spec, origin)
    inputs = facts.inputs or InputSpec()
    weights = _assemble(arrays, facts.spec, inputs, origin, hash_file(path), labels=facts.labels)
    if facts.pool is None:
        return weights
    return replace(weights, provenance=replace(weights.provenance, pool=facts.pool))


def _describe_source(source: ModelSource, published: Published, model: HubModel) -> ModelSource:
    """Return ``source`` with what is known of the published encoder, where ``source`` leaves it open."""
    found: dict[str, Any] = {}
    if source.heads is None:
        found["heads"] = model.heads or _known_heads(published)
    if model.image_size is not None:
        # the size that positions are for; they are resampled to the one that was asked for later
        found["image_size"] = model.image_size
    form = {}
    for name, value in _describe_form(model.facts).items():
        # what is not the plain ViT's was set by somebody
        if getattr(source.form, name) == getattr(PLAIN, name):
            form[name] = value
    found["form"] = source.form.model_copy(update=form)
    return source.model_copy(update=found)


def _describe_form(facts: PublishedFacts) -> dict[str, Any]:
    """Return the fields of a ViT's form that no shape tells."""
    return {"norm_epsilon": facts.norm_epsilon, "mlp": facts.activation, "rotary": facts.rotary}


def _known_heads(published: Published) -> int | None:
    """Return the heads of the family's encoder of this width; None for names that tell no family."""
    patches = published.arrays.get("patch_embed.proj.weight")
    if patches is None:
        return None
    width = len(patches)
    if width in published.facts.heads:
        return published.facts.heads[width]
    if published.family == UNNAMED:
        return None
    return {preset["width"]: preset["heads"] for preset in VIT_PRESETS.values()}.get(width)


def _assemble(
    arrays: Arrays,
    spec: EncoderSpec,
    inputs: InputSpec,
    origin: str,
    sha256: str,
    notes: tuple[str, ...] = (),
    labels: tuple[str, ...] = (),
) -> Weights:
    """Return the weights with what their classifier sees, and names for its classes."""
    pool: Pool = "avg"
    named: tuple[str, ...] = ()
    if "attn_pool.latent" in arrays:
        pool = "map"
    classifier = arrays.get(f"{spec.classifier}.weight")
    if classifier is not None:
        named = labels if len(labels) == len(classifier) else number_labels(len(classifier))
        # the classifier of a plain ViT sees the class token, unless a norm after the mean shows MAE's fine-tuning
        if pool == "avg" and spec.has_class_token and "fc_norm.weight" not in arrays:
            pool = "token"
    return Weights(arrays, Provenance(origin, "file", sha256, inputs, named, pool, notes), spec)
