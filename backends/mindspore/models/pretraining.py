"""From a configuration to the model that is pretrained: an objective and an encoder."""

from __future__ import annotations

from typing import Any

import numpy as np

from ehm.backends.mindspore.models.mae import MaskedAutoencoder
from ehm.backends.mindspore.models.simmim import SimmimVit
from ehm.config import TrainConfig
from ehm.config.encoders import SwinSpec
from ehm.errors import BackendError

__all__ = ["Model", "build_model"]

Model = MaskedAutoencoder | SimmimVit
"""``construct`` gives the loss from images, the indices of a mask and, but for MAE, drop path's factors."""


def build_model(config: TrainConfig, dtype: Any) -> Model:
    """A model as the seed starts it; BackendError for an objective or an encoder that this backend lacks."""
    spec, model, rng = config.spec, config.model, np.random.default_rng(config.run.seed)
    if config.objective == "beit":
        raise BackendError("objective beit: the MindSpore backend has mae and simmim; beit needs torch")
    if isinstance(spec, SwinSpec):
        raise BackendError(f"encoder {config.encoder}: the MindSpore backend has ViTs; a Swin needs torch")
    if config.objective == "simmim":
        return SimmimVit(spec, rng, dtype)
    return MaskedAutoencoder(
        spec, rng, model.decoder_width, model.decoder_depth, model.decoder_heads, model.norm_pix_loss, dtype
    )
