"""Where weights come from, in MindSpore cells: our runs and files of weights, or nothing.

:mod:`ehm.models.weights` and :mod:`ehm.models.pretraining` say which arrays a model takes; here they are copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import mindspore as ms
import numpy as np
from mindspore import Parameter, nn

from ehm.backends.mindspore.engine.tensors import put
from ehm.backends.mindspore.models.vit import VisionTransformer
from ehm.config import ModelSource, TrainConfig, encoder_spec
from ehm.config.encoders import EncoderSpec, VitSpec
from ehm.config.inputs import InputSpec
from ehm.errors import ConfigError
from ehm.models.pretraining import initial_weights
from ehm.models.shapes import at_size, describe
from ehm.models.weights import fitted, read_weights, select
from ehm.storage.arrays import Arrays

__all__ = ["Loaded", "begin_with", "load_model"]


@dataclass(frozen=True)
class Loaded:
    """A model with its weights in place, and what it is: ``architecture`` rebuilds it, as JSON.

    ``inputs`` is how its weights want images to be prepared.
    """

    model: VisionTransformer
    spec: VitSpec
    architecture: dict[str, Any]
    inputs: InputSpec = field(default_factory=InputSpec)
    notes: tuple[str, ...] = ()


def load_model(
    source: ModelSource,
    seed: int,
    classes: int = 0,
    pool: Literal["avg", "token"] = "avg",
    fc_norm: bool | None = None,
    dtype: Any = ms.float32,
    probe: bool = False,
) -> Loaded:
    """The encoder that ``source`` names under a head of ``classes`` that ``seed`` starts (0: none, pooled features).

    ``pool``, ``fc_norm`` and ``probe`` are :class:`VisionTransformer`'s. Positions and tables of relative ones are
    resampled to ``source.image_size``. Raises CheckpointError where weights are missing or do not fit, ConfigError
    where the settings do not.
    """
    rng = np.random.default_rng(seed)
    if source.init.startswith("timm:"):
        raise ConfigError(f"model.init {source.init}: timm's models need torch; {_TAKES}")
    if source.init == "scratch":
        try:
            named = encoder_spec(source.encoder, source.image_size or (224, 224), source.patch_size, source)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        spec = _vit(named, f"model.encoder {source.encoder}")
        return Loaded(VisionTransformer(spec, rng, classes, pool, fc_norm, dtype, probe), spec, describe(spec))
    weights = read_weights(source)
    if weights.spec is None:
        raise ConfigError(f"model.init {source.init}: holds timm's {weights.timm}, which needs torch; {_TAKES}")
    spec = _vit(at_size(weights.spec, source), f"model.init {source.init}: holds a Swin, which")
    arrays = fitted(weights, spec)
    if pool == "avg" and "fc_norm.weight" in arrays and "norm.weight" not in arrays:
        fc_norm = True  # a fine-tuned encoder, whose norm stands behind the average already
    model = VisionTransformer(spec, rng, classes, pool, fc_norm, dtype, probe)
    own = dict(model.parameters_and_names())
    placed, notes = select(_shapes(own), arrays, "head", source.init, weights.notes)
    _place(own, placed)
    return Loaded(model, spec, describe(spec), weights.inputs, notes)


def begin_with(model: nn.Cell, config: TrainConfig) -> tuple[str, ...]:
    """Copy what weights ``config.model.init`` names into ``model``, one that is pretrained; notes on what was done."""
    own = dict(model.parameters_and_names())
    placed, notes = initial_weights(config, _shapes(own))
    _place(own, placed)
    return notes


def _vit(spec: EncoderSpec, named: str) -> VitSpec:
    """``spec``; ConfigError, which begins with what is ``named``, for another encoder."""
    if not isinstance(spec, VitSpec):
        raise ConfigError(f"{named} needs torch; the MindSpore backend has ViTs")
    return spec


def _shapes(parameters: Mapping[str, Parameter]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in parameters.items()}


def _place(parameters: Mapping[str, Parameter], arrays: Arrays) -> None:
    for name, array in arrays.items():
        put(parameters[name], array)


_TAKES = "the MindSpore backend takes a run folder, a .safetensors file or scratch"
