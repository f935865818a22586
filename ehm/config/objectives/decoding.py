"""Rules of the objectives that leave hidden patches out of the encoder and decode them from the visible ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ehm.config.encoders import find_family
from ehm.config.objectives.base import Objective

if TYPE_CHECKING:
    from ehm.config.pretraining import TrainConfig

__all__ = ["DecodingObjective"]


class DecodingObjective(Objective):
    """An objective whose encoder sees visible patches only, under a decoder of all of them."""

    def check(self, config: TrainConfig) -> None:
        """See :meth:`Objective.check`."""
        super().check(config)
        if not find_family(config.encoder).encodes_subsets:
            raise ValueError(
                f"objective {self.name} leaves hidden patches out of the encoder, which {config.encoder} cannot do: "
                "its windows hold all of them; take objective simmim or beit, or a ViT"
            )
        model = config.model
        if model.decoder_width % 4:  # sine-cosine positions have four parts
            raise ValueError(f"model.decoder_width {model.decoder_width} is not a multiple of 4")
        if model.decoder_width % model.decoder_heads:
            raise ValueError(
                f"model.decoder_width {model.decoder_width} is not a multiple of "
                f"model.decoder_heads {model.decoder_heads}"
            )
        if model.drop_path:
            raise ValueError(f"model.drop_path {model.drop_path}: not with objective {self.name}, which has none")
