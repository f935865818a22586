"""Choose the weights that a pretraining run begins with: ``model.init``, published ones or our own, to go on from.

If a run names no encoder, that of the weights is taken. Else it has to be the run's own kind; its image size, and a
Swin's window, may differ. No framework here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ehm.config import ModelSource, TrainConfig, load_config
from ehm.config.encoders import EncoderSpec, SwinSpec
from ehm.config.objectives import OBJECTIVES
from ehm.errors import CheckpointError, ConfigError
from ehm.models.channels import adapt_channels
from ehm.models.encoder_parts import HEADS
from ehm.models.fitting import Shapes, select_but_fresh
from ehm.models.resample import resample_arrays
from ehm.models.tables import SHARED_TABLE, average_tables
from ehm.models.weights import Weights
from ehm.storage.arrays import Arrays, find_mismatches

__all__ = [
    "adopt_encoder",
    "drop_first_weights",
    "keep_needed_weights",
    "name_first_weights",
    "select_initial_arrays",
]

_RESAMPLED = ("image_size", "window")
"""Sizes of an encoder that may be others than those of the weights."""


def name_first_weights(config: TrainConfig) -> ModelSource:
    """Return how a pretraining run opens the weights that it begins with.

    A bare file does not say its heads, its grid and parts of its form, which are most likely the run's.
    """
    init = config.model.init
    assert init is not None
    source = ModelSource(init=init, heads=config.model.heads, form=config.model.form)
    if config.awaits_encoder:
        return source
    return source.model_copy(update={"heads": config.spec.heads, "image_size": config.spec.image_size})


def drop_first_weights(config: TrainConfig) -> TrainConfig:
    """Return ``config`` without ``model.init``, for a model whose weights come from elsewhere."""
    return config.model_copy(update={"model": config.model.model_copy(update={"init": None})})


def keep_needed_weights(config: TrainConfig) -> TrainConfig:
    """Return ``config`` for a model that goes on from a checkpoint: with ``model.init`` only if that lacks them.

    What the run began with need not be there any more; but a frozen teacher is not in the checkpoints.
    """
    return config if OBJECTIVES[config.objective].needs_first_weights(config) else drop_first_weights(config)


def adopt_encoder(config: TrainConfig, weights: Weights) -> tuple[TrainConfig, tuple[str, ...]]:
    """Return ``config`` with the encoder of ``weights``, and notes on what that changes.

    The image size becomes the next multiple of the encoder's stride. Pixels are normalised as the weights were trained,
    unless the configuration says otherwise. Raises CheckpointError if the weights are no encoder that ehm pretrains,
    ConfigError if the configuration does not suit it.
    """
    init = config.model.init
    spec = weights.spec
    if spec is None:
        raise CheckpointError(
            f"model.init {init}: {weights.timm} is no encoder that ehm pretrains; docs/weights.md lists the families"
        )
    notes = []
    size = (_round_to(config.image_size[0], spec.stride), _round_to(config.image_size[1], spec.stride))
    if size != config.image_size:
        notes.append(f"images of {size[0]} x {size[1]} pixels, a multiple of the encoder's {spec.stride}")
    own = weights.provenance.inputs
    defaults = TrainConfig(objective=config.objective).data
    values = config.model_dump(mode="json")
    is_usual = config.data.pixels.is_rgb and (config.data.mean, config.data.std) == (defaults.mean, defaults.std)
    if is_usual:
        values["data"] |= {"mean": own.mean, "std": own.std, **own.pixels.to_json()}
        notes.append(f"pixels normalised as for the weights: mean {list(own.mean)}, std {list(own.std)}")
        if not own.pixels.is_rgb:
            notes.append(f"images of {own.pixels.describe()}, as for the weights")
    values["encoder"] = _name_encoder(spec)
    values["image_size"] = size
    values["patch_size"] = spec.patch_size
    values["model"] |= _describe_sizes(spec)
    try:
        return load_config(TrainConfig, values), tuple(notes)
    except ConfigError as error:
        raise ConfigError(f"model.init {init} has {spec.description}: {error}") from None


def _round_to(length: int, stride: int) -> int:
    """Return the multiple of ``stride`` that is next to ``length``."""
    return max(1, round(length / stride)) * stride


def _name_encoder(spec: EncoderSpec) -> str:
    """Return the name of the published encoder that is as wide as ``spec``, else of the first one of its family."""
    for name, preset in spec.presets.items():
        if preset["width"] == spec.width:
            return name
    return next(iter(spec.presets))


def _describe_sizes(spec: EncoderSpec) -> dict[str, Any]:
    """Return the values of the section ``model`` that give ``spec``, whatever the encoder's name."""
    values: dict[str, Any] = {"width": spec.width, "heads": spec.heads, "mlp_ratio": spec.mlp_ratio}
    if isinstance(spec, SwinSpec):
        return values | {"depth": spec.depths}
    return values | {"depth": spec.depth, "relative": spec.relative, "form": spec.form.model_dump(mode="json")}


def select_initial_arrays(
    config: TrainConfig,
    shapes: Shapes,
    open_weights: Callable[[ModelSource], Weights],
    weights: Weights | None = None,
) -> tuple[Arrays, tuple[str, ...]]:
    """Return what of ``config.model.init`` goes into a model whose parameters have ``shapes``, and notes on it.

    ``weights`` are what it names; ``open_weights`` opens them if that was not done. The result is empty if none are
    asked for. All of the encoder is in it, positions and tables resampled to the run's grid; of what pretraining has
    beside it (:data:`ehm.models.encoder_parts.HEADS`), each part that the weights lack, or have of another shape, is
    absent from the result and stays as the model began. Raises CheckpointError if they are those of another encoder.
    """
    init = config.model.init
    if init is None:
        return {}, ()
    if weights is None:
        weights = open_weights(name_first_weights(config))
    if weights.spec is not None:
        weights = adapt_channels(weights, config.spec.channels, config.model.adapt_channels)
    notes = [f"begins with the weights of {init}", *weights.provenance.notes]
    arrays = _resample_same_kind(weights, config.spec, init)
    if SHARED_TABLE in shapes and SHARED_TABLE not in arrays:
        # the encoder was fine-tuned, where each block got a table of its own
        arrays = average_tables(arrays)
        if SHARED_TABLE in arrays:
            notes.append("the biases for relative positions are the mean of those of its blocks")
    selected, found = select_but_fresh(shapes, arrays, _find_fresh_names(shapes, arrays), init)
    notes += found
    inputs = weights.provenance.inputs
    if config.data.pixels == inputs.pixels and (inputs.mean, inputs.std) != (config.data.mean, config.data.std):
        notes.append(f"these weights are taken as trained with data.mean {inputs.mean} and data.std {inputs.std}")
    return selected, tuple(notes)


def _resample_same_kind(weights: Weights, spec: EncoderSpec, init: str) -> Arrays:
    """Resample the arrays to ``spec``; CheckpointError if their encoder is another one at any size."""
    found = weights.spec
    if found is None:
        raise CheckpointError(f"model.init {init}: holds {weights.timm}, and the run's encoder is {spec.description}")
    if found.description != spec.description:
        raise CheckpointError(
            f"model.init {init}: holds {found.description}, and the run's encoder is {spec.description}"
        )
    theirs = []
    ours = []
    for name, wanted in vars(spec).items():
        held = getattr(found, name)
        if name not in _RESAMPLED and held != wanted:
            theirs.append(f"{name} {held}")
            ours.append(f"{name} {wanted}")
    if theirs:
        raise CheckpointError(
            f"model.init {init}: its encoder has {', '.join(theirs)}, and the run's has {', '.join(ours)}"
        )
    return resample_arrays(weights.arrays, spec, found)


def _find_fresh_names(shapes: Shapes, arrays: Arrays) -> set[str]:
    """Return the names of those parts beside the encoder that ``arrays`` do not have complete."""
    parts = list(HEADS)
    if "fc_norm.weight" in arrays:
        # the norm of a fine-tuned encoder follows the pooling, which pretraining does not have
        parts.append("norm.")
    fresh: set[str] = set()
    for part in parts:
        wanted = {name: shape for name, shape in shapes.items() if name.startswith(part)}
        # a part is taken whole or not at all: half of a decoder's weights would fit nothing
        if find_mismatches(wanted, arrays):
            fresh.update(wanted)
    return fresh
