"""The encoder that a downstream task starts from, as a MindSpore cell: our runs and files of weights, or nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import mindspore as ms
import numpy as np

from ehm.backends.mindspore.models.vit import VisionTransformer
from ehm.backends.mindspore.tensors import put
from ehm.config import ModelSource, Triple, encoder_spec
from ehm.encoders import VitSpec
from ehm.errors import ConfigError
from ehm.weights import MEAN, STD, at_size, describe, read_weights, resample_positions, select

__all__ = ["Loaded", "load_model"]


@dataclass(frozen=True)
class Loaded:
    """A model with its weights in place, and what it is: ``architecture`` rebuilds it, as JSON."""

    model: VisionTransformer
    spec: VitSpec
    architecture: dict[str, Any]
    mean: Triple = MEAN
    std: Triple = STD
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

    ``pool``, ``fc_norm`` and ``probe`` are :class:`VisionTransformer`'s. Position embeddings are resampled to
    ``source.image_size``. Raises CheckpointError where weights are missing or do not fit, ConfigError where the
    settings do not.
    """
    rng = np.random.default_rng(seed)
    if source.init.startswith("timm:"):
        raise ConfigError(f"model.init {source.init}: timm's models need torch; {_TAKES}")
    if source.init == "scratch":
        try:
            spec = encoder_spec(source.encoder, source.image_size or (224, 224), source.patch_size, source)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        return Loaded(VisionTransformer(spec, rng, classes, pool, fc_norm, dtype, probe), spec, describe(spec))
    weights = read_weights(source)
    if weights.spec is None:
        raise ConfigError(f"model.init {source.init}: holds timm's {weights.timm}, which needs torch; {_TAKES}")
    spec, arrays = at_size(weights.spec, source), dict(weights.arrays)
    if pool == "avg" and "fc_norm.weight" in arrays and "norm.weight" not in arrays:
        fc_norm = True  # a fine-tuned encoder, whose norm stands behind the average already
    model = VisionTransformer(spec, rng, classes, pool, fc_norm, dtype, probe)
    arrays["pos_embed"] = resample_positions(arrays["pos_embed"], spec.grid, weights.spec.grid)
    own = dict(model.parameters_and_names())
    placed, notes = select({name: tuple(value.shape) for name, value in own.items()}, arrays, "head", source.init)
    for name, array in placed.items():
        put(own[name], array)
    return Loaded(model, spec, describe(spec), weights.mean, weights.std, notes)


_TAKES = "the MindSpore backend takes a run folder, a .safetensors file or scratch"
