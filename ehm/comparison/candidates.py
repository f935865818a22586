"""The encoders of a comparison: those that the user names, and ``scratch``, the architecture of the first, untrained.

A candidate has one member. Only ``scratch`` has several, which differ by the seed of their random weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from ehm.backends.base import Backend
from ehm.comparison.features import make_key
from ehm.comparison.images import LabelledImages
from ehm.config import ModelSource, TrainConfig, load_config
from ehm.config.encoders import EncoderSpec
from ehm.errors import CheckpointError, ConfigError
from ehm.models.encoder_file import make_encoder_metadata
from ehm.models.fitting import keep_encoder
from ehm.models.pretraining import adopt_encoder, drop_first_weights
from ehm.models.shapes import spec_to_json
from ehm.models.weights import Weights
from ehm.storage.reading import hash_file
from ehm.storage.writing import replace_file
from ehm.training.training_data import find_seen, read_seen_images

__all__ = ["SCRATCH", "Candidate", "Member", "open_candidates", "refuse_training_images"]

SCRATCH = "scratch"
_UNTRAINED = "?pretrained=false"
"""The end of a timm name that asks for the network without its trained weights."""


@dataclass(frozen=True)
class Member:
    """An encoder, written as for ``model.init``, and a key that identifies the content of its weights."""

    init: str
    weights: str


@dataclass(frozen=True)
class Candidate:
    """An encoder that is compared, by the name that the user gave it."""

    name: str
    members: tuple[Member, ...]

    @property
    def title(self) -> str:
        """The name in tables."""
        count = len(self.members)
        return f"{self.name}, mean of {count} seeds" if count > 1 else self.name


def open_candidates(names: Sequence[str], backend: Backend, out: Path, scratch_seeds: int) -> list[Candidate]:
    """Open the encoders that ``names`` mean; the random ones of ``scratch`` are written into ``out``.

    Raises ConfigError if an encoder is named twice or if there is only ``scratch``, and CheckpointError if one does not
    exist.
    """
    _check_names(names)
    opened: dict[str, Weights] = {}
    for name in names:
        if name != SCRATCH:
            opened[name] = _open_weights(name, backend)
    candidates = []
    for name in names:
        if name == SCRATCH:
            first = next(iter(opened))
            members = _make_scratch(first, opened[first], backend, out / SCRATCH, scratch_seeds)
        else:
            members = (Member(name, _identify_weights(opened[name])),)
        candidates.append(Candidate(name, members))
    return candidates


def refuse_training_images(candidates: Sequence[Candidate], images: LabelledImages, threads: int) -> None:
    """Raise ConfigError if a candidate was trained with the labels of images that it would be measured on."""
    for candidate in candidates:
        if candidate.name == SCRATCH:
            continue
        seen = read_seen_images(candidate.name)
        # the validation part, or all images if there are folds, because each image is held out once
        measured = images.parts[-1]
        count = int(find_seen(measured.source, measured.indices, seen, threads).sum())
        if count:
            raise ConfigError(
                f"{candidate.name}: was trained with the labels of {count:,} of the {len(measured):,} images to "
                "measure on, so its figures would say nothing about new images; compare the encoder that it began "
                "with, or take other images"
            )


def _check_names(names: Sequence[str]) -> None:
    """Raise ConfigError if ``names`` cannot be compared."""
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{name}: is named twice; name each encoder once")
    if set(names) == {SCRATCH}:
        raise ConfigError("scratch: takes the architecture of the first other encoder, and there is none; name one")


def _open_weights(name: str, backend: Backend) -> Weights:
    """Open the weights that ``name`` means; an error begins with the argument, as there is no key ``model.init``."""
    try:
        return backend.open_weights(ModelSource(init=name))
    except CheckpointError as error:
        raise CheckpointError(str(error).replace("model.init ", "", 1)) from None
    except ConfigError as error:
        raise ConfigError(str(error).replace("model.init ", "", 1)) from None


def _make_scratch(name: str, weights: Weights, backend: Backend, folder: Path, seeds: int) -> tuple[Member, ...]:
    """Write encoders with the architecture of ``weights``, which ``name`` means, and random weights into ``folder``.

    As files they are measured like any other encoder. An architecture that only timm has gives one member: timm's own
    network without its trained weights.
    """
    if weights.spec is None:
        untrained = name.partition("?")[0] + _UNTRAINED
        return (Member(untrained, f"timm's {weights.timm}, untrained"),)
    members = []
    for seed in range(seeds):
        path = folder / f"seed-{seed}.safetensors"
        _write_untrained(path, weights, weights.spec, backend, seed)
        members.append(Member(str(path), hash_file(path)))
    return tuple(members)


def _identify_weights(weights: Weights) -> str:
    """Return a key of everything that the features of ``weights`` depend on, without the path of their file."""
    provenance = weights.provenance
    facts: dict[str, Any] = {"sha256": provenance.sha256, "inputs": provenance.inputs.to_json(), "timm": weights.timm}
    if weights.spec is not None:
        facts["spec"] = spec_to_json(weights.spec)
    return make_key(facts)


def _write_untrained(path: Path, weights: Weights, spec: EncoderSpec, backend: Backend, seed: int) -> None:
    """Write an encoder with the architecture of ``weights`` and the first weights of a pretraining with ``seed``."""
    values = {
        # any objective that this encoder can be trained with: keep_encoder drops the part that belongs to the objective
        "objective": "mae" if spec.encodes_subsets and not getattr(spec, "relative", False) else "simmim",
        "image_size": list(spec.image_size),
        "mask": {"unit": spec.stride},
        "model": {"init": str(path), "decoder_depth": 1},
        "run": {"seed": seed},
    }
    config, _ = adopt_encoder(load_config(TrainConfig, values), weights)
    arrays = keep_encoder(backend.create_learner(drop_first_weights(config)).state().model, config.spec.blocks)
    with replace_file(path) as temporary:
        save_file(arrays, temporary, make_encoder_metadata(config.spec, weights.provenance.inputs))
