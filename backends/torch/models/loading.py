"""Load an encoder into torch: from our runs, published files or timm, or without any weights.

:mod:`ehm.models.fitting` and :mod:`ehm.models.pretraining` choose the arrays that a network takes; here they are
copied. A head or a decoder of a file is left aside and said in the notes; anything else that the encoder has and the
file lacks, or the other way round, is a CheckpointError. Reading a file never executes anything in it.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from ehm.backends.torch.models.build import build_encoder
from ehm.backends.torch.models.pooling import pool_as
from ehm.backends.torch.models.timm_loading import (
    create_timm_model,
    describe_timm_model,
    load_timm_model,
    open_timm_weights,
)
from ehm.backends.torch.models.torch_file import read_arrays
from ehm.config import ModelSource, TrainConfig
from ehm.models.channels import adapt_channels
from ehm.models.fitting import resize_weights, select_arrays
from ehm.models.opening import open_model
from ehm.models.pretraining import select_initial_arrays
from ehm.models.shapes import drop_unused_query, spec_from_settings, spec_to_json
from ehm.models.timm_repository import TIMM
from ehm.models.weights import LoadedModel, Pool, Provenance, Weights
from ehm.storage.arrays import Arrays

__all__ = ["find_classifier_name", "load_initial_weights", "load_model", "open_weights"]


def load_model(
    source: ModelSource,
    classes: int = 0,
    pool: Pool = "avg",
    fc_norm: bool | None = None,
    weights: Weights | None = None,
    repool: bool = False,
    channels: int | None = None,
) -> LoadedModel:
    """Load the encoder that ``source`` names under a fresh head of ``classes``, or none: it gives pooled features then.

    ``pool`` and ``fc_norm`` are :func:`build_encoder`'s; a timm model keeps its own pooling unless ``repool`` is set.
    Positions and tables of relative ones are resampled to ``source.image_size``. A norm behind an average starts
    afresh, as in MAE's fine-tuning, unless the weights are those of a fine-tuned encoder. ``weights`` are what
    ``source`` names if that was opened already. The patch embedding is adapted to ``channels``, if they are given and
    are others than those of the weights.

    Raises CheckpointError if weights are missing or do not fit, ConfigError if the settings do not.
    """
    if source.init.startswith(TIMM):
        loaded = load_timm_model(source, classes, channels)
        if repool:
            pool_as(loaded.model, pool, source.init)
        return loaded
    if source.init == "scratch":
        spec = spec_from_settings(source, channels or 3)
        model = build_encoder(spec, classes, source.drop_path, pool, fc_norm)
        return LoadedModel(model, spec_to_json(spec), Provenance("scratch", "scratch"))
    if weights is None:
        weights = open_weights(source)
    if weights.timm is not None:
        pixels = weights.provenance.inputs.pixels
        model = create_timm_model(weights.timm, False, source, classes, weights.image_size, pixels.count)
        size = source.image_size or weights.image_size or (224, 224)
        architecture = describe_timm_model(model, weights.timm, size)
        if repool:
            pool_as(model, pool, source.init)
    else:
        assert weights.spec is not None
        weights = adapt_channels(weights, channels or weights.spec.channels, source.adapt_channels)
        weights = resize_weights(weights, source)
        assert weights.spec is not None
        if pool == "avg" and weights.has_norm_after_pooling:
            fc_norm = True  # else the norm that the weights have would be left out, and none be used
        model = build_encoder(weights.spec, classes, source.drop_path, pool, fc_norm)
        architecture = spec_to_json(drop_unused_query(weights.spec, pool))
    assumptions = weights.provenance.notes
    classifier = find_classifier_name(model)
    arrays, notes = select_arrays(_list_shapes(model), weights.arrays, classifier, source.init, assumptions)
    _copy_arrays(model, arrays)
    return LoadedModel(model, architecture, weights.provenance, notes)


def open_weights(source: ModelSource) -> Weights:
    """Open what ``source.init`` names as arrays: what :func:`ehm.models.opening.open_model` opens, and ``timm:NAME``.

    Raises as that function and :func:`load_model` do; a network of timm's that is no encoder of ours has no spec.
    """
    if source.init.startswith(TIMM):
        return open_timm_weights(source)
    return open_model(source, read_arrays)


def load_initial_weights(model: nn.Module, config: TrainConfig, weights: Weights | None = None) -> tuple[str, ...]:
    """Copy the weights that ``config.model.init`` names into ``model``, one in pretraining; return notes on them.

    ``weights`` are these if they were opened already. Without ``config.model.init`` nothing is copied.
    """
    arrays, notes = select_initial_arrays(config, _list_shapes(model), open_weights, weights)
    _copy_arrays(model, arrays)
    return notes


def find_classifier_name(model: Any) -> str:
    """Return the name of a timm model's last linear layer: ``head``, ``fc``, ``head.fc`` ..."""
    # the encoders that we build ourselves have no pretrained_cfg
    default = "head"
    if isinstance(model, SwinTransformer):
        default = "head.fc"
    return str(getattr(model, "pretrained_cfg", {}).get("classifier", default))


def _list_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _copy_arrays(model: nn.Module, arrays: Arrays) -> None:
    """Copy ``arrays`` into ``model``; parameters that they lack stay as they are."""
    state = model.state_dict()
    for name, array in arrays.items():
        state[name] = torch.from_numpy(array)
    model.load_state_dict(state)
