"""A model as it was found: its arrays or its network, and where they come from.

:func:`ehm.models.opening.open_model` gives :class:`Weights`, arrays without a framework; a backend puts them into a
network and gives :class:`LoadedModel`. Both carry the same :class:`Provenance`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ehm.config.encoders import EncoderSpec, VitSpec
from ehm.config.inputs import InputSpec
from ehm.errors import ConfigError
from ehm.storage.arrays import Arrays
from ehm.storage.checkpoint import Checkpoint

__all__ = ["LoadedModel", "Pool", "Provenance", "Weights", "check_pool", "number_labels"]

Pool = Literal["avg", "token", "map"]
"""Pooling of tokens to features: the mean of the patches, the class token, or what a learned query takes of them."""


@dataclass(frozen=True)
class Provenance:
    """The source of a model, and what it says beside the arrays.

    ``origin`` is the folder of a checkpoint, the path of a file, or what the configuration names otherwise. ``kind`` is
    that of the checkpoint (:attr:`ehm.storage.checkpoint.Checkpoint.kind`), or ``file``, ``timm`` or ``scratch``.
    ``sha256`` is that of the file of weights, for a model of timm's of its tensors in the safetensors format.
    ``inputs`` is how images were prepared in training. ``labels`` are the names of a classifier's classes, empty
    without one; if an image has several of them, ``thresholds`` are the probabilities from which each is present.
    ``pool`` is what the classifier sees, and the features are. ``notes`` say what was assumed because the source does
    not tell it.
    """

    origin: str
    kind: str
    sha256: str = ""
    inputs: InputSpec = field(default_factory=InputSpec)
    labels: tuple[str, ...] = ()
    pool: Pool = "avg"
    notes: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Weights:
    """An encoder and its classifier, if there is one, as arrays under timm's names, float32 where floating.

    ``spec`` has the encoder's sizes. It is None for a network of timm's: then ``timm`` is its name and ``image_size``
    its own (height, width). ``checkpoint`` is what the arrays were read from, which has more than them for a task other
    than classification; None for a file.
    """

    arrays: Arrays
    provenance: Provenance
    spec: EncoderSpec | None = None
    timm: str | None = None
    image_size: tuple[int, int] | None = None
    checkpoint: Checkpoint | None = None

    @property
    def has_norm_after_pooling(self) -> bool:
        """True for a fine-tuned encoder whose last norm follows the mean of the tokens, as in MAE's fine-tuning."""
        return "fc_norm.weight" in self.arrays and "norm.weight" not in self.arrays


@dataclass(frozen=True)
class LoadedModel:
    """A network of a framework with its weights in place.

    ``architecture`` is JSON that rebuilds it; ``notes`` say what was loaded and what was left aside.
    """

    model: Any
    architecture: dict[str, Any]
    provenance: Provenance
    notes: tuple[str, ...] = ()

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.architecture["image_size"]
        return height, width

    @property
    def inputs(self) -> InputSpec:
        """The preparation of images that the weights want."""
        return self.provenance.inputs


def number_labels(classes: int) -> tuple[str, ...]:
    """Return the labels "0", "1", ... for ``classes`` without names."""
    return tuple(map(str, range(classes)))


def check_pool(spec: EncoderSpec, pool: Pool) -> None:
    """Raise ConfigError if an encoder of ``spec`` has no token or no query that ``pool`` takes."""
    has_query = isinstance(spec, VitSpec) and spec.form.attention_pool
    possible: list[Pool] = ["avg"]
    if spec.has_class_token:
        possible.append("token")
    if has_query:
        possible.append("map")
    if pool not in possible:
        lacking = "no query that pools" if pool == "map" else "no class token"
        raise ConfigError(f"pool {pool}: {spec.description} has {lacking}; set pool to {' or '.join(possible)}")
