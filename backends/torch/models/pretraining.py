"""From a configuration to the model that is pretrained: an objective and an encoder."""

from __future__ import annotations

from typing import Any

from ehm.backends.torch.models.beit import BeitSwin, BeitVit
from ehm.backends.torch.models.mae import MaskedAutoencoder
from ehm.backends.torch.models.simmim import SimmimSwin, SimmimVit
from ehm.config import TrainConfig
from ehm.config.encoders import SwinSpec

__all__ = ["build_model"]


def build_model(config: TrainConfig, vocabulary: int) -> Any:
    """An untrained model; ``forward`` gives the loss from images and the indices of a mask.

    All have ``embed``, ``similarity``, ``features``, with a class token ``saliency``, and a ``stack`` of the modules
    that their encoder is made of. BEiT predicts visual tokens of a ``vocabulary``.
    """
    spec, model = config.spec, config.model
    if config.objective == "simmim":
        simmim: Any = SimmimSwin if isinstance(spec, SwinSpec) else SimmimVit
        return simmim(spec, model.drop_path)
    if config.objective == "beit":
        beit: Any = BeitSwin if isinstance(spec, SwinSpec) else BeitVit
        return beit(spec, model.drop_path, vocabulary=vocabulary)
    assert not isinstance(spec, SwinSpec)
    return MaskedAutoencoder(spec, model.decoder_width, model.decoder_depth, model.decoder_heads, model.norm_pix_loss)
