"""Load an encoder into MindSpore: from our runs and published weights, or without any weights.

:mod:`ehm.models.fitting` and :mod:`ehm.models.pretraining` choose the arrays that a network takes; here they are
copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, nn

from ehm.backends.mindspore.engine.tensors import set_values
from ehm.backends.mindspore.models.build import build_encoder
from ehm.config import ModelSource, TrainConfig
from ehm.errors import ConfigError
from ehm.models.channels import adapt_channels
from ehm.models.fitting import resize_weights, select_arrays
from ehm.models.opening import open_model
from ehm.models.pretraining import select_initial_arrays
from ehm.models.shapes import drop_unused_query, spec_from_settings, spec_to_json
from ehm.models.timm_repository import TIMM, open_timm_repository
from ehm.models.weights import LoadedModel, Pool, Provenance, Weights
from ehm.storage.arrays import Arrays

__all__ = ["load_initial_weights", "load_model", "open_weights"]


def load_model(
    source: ModelSource,
    seed: int,
    classes: int = 0,
    pool: Pool = "avg",
    fc_norm: bool | None = None,
    dtype: Any = ms.float32,
    probe: bool = False,
    weights: Weights | None = None,
    channels: int | None = None,
) -> LoadedModel:
    """Load the encoder that ``source`` names under a head of ``classes`` that ``seed`` starts (0: none).

    ``pool``, ``fc_norm`` and ``probe`` are :func:`build_encoder`'s. Positions and tables of relative ones are
    resampled to ``source.image_size``, and the patch embedding is adapted to ``channels``, if they are given.
    ``weights`` are what ``source`` names if that was opened already. Raises CheckpointError if weights are missing or
    do not fit, ConfigError if the settings do not.
    """
    rng = np.random.default_rng(seed)
    if source.init == "scratch":
        spec = spec_from_settings(source, channels or 3)
        model = build_encoder(spec, rng, classes, pool, fc_norm, dtype, probe)
        return LoadedModel(model, spec_to_json(spec), Provenance("scratch", "scratch"))
    if weights is None:
        weights = open_weights(source)
    if weights.spec is None:
        raise ConfigError(
            f"model.init {source.init}: holds timm's {weights.timm}, which only timm builds; it needs torch"
        )
    weights = adapt_channels(weights, channels or weights.spec.channels, source.adapt_channels)
    weights = resize_weights(weights, source)
    assert weights.spec is not None
    spec = weights.spec
    if pool == "avg" and weights.has_norm_after_pooling:
        fc_norm = True  # else the norm that the weights have would be left out, and none be used
    model = build_encoder(spec, rng, classes, pool, fc_norm, dtype, probe)
    parameters = dict(model.parameters_and_names())
    arrays, notes = select_arrays(
        _list_shapes(parameters), weights.arrays, spec.classifier, source.init, weights.provenance.notes
    )
    _copy_arrays(parameters, arrays)
    return LoadedModel(model, spec_to_json(drop_unused_query(spec, pool)), weights.provenance, notes)


def open_weights(source: ModelSource) -> Weights:
    """Open what ``source.init`` names: what ``open_model`` opens, and the published weights of timm's ViTs and Swins.

    Raises as that function and :func:`open_timm_repository` do.
    """
    if source.init.startswith(TIMM):
        return open_timm_repository(source)
    return open_model(source)


def load_initial_weights(model: nn.Cell, config: TrainConfig, weights: Weights | None = None) -> tuple[str, ...]:
    """Copy the weights that ``config.model.init`` names into ``model``, one in pretraining; return notes on them.

    ``weights`` are these if they were opened already. Without ``config.model.init`` nothing is copied.
    """
    parameters = dict(model.parameters_and_names())
    arrays, notes = select_initial_arrays(config, _list_shapes(parameters), open_weights, weights)
    _copy_arrays(parameters, arrays)
    return notes


def _list_shapes(parameters: Mapping[str, Parameter]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in parameters.items()}


def _copy_arrays(parameters: Mapping[str, Parameter], arrays: Arrays) -> None:
    for name, array in arrays.items():
        set_values(parameters[name], array)
