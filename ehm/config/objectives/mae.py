"""MAE (He et al., 2022): an encoder of the visible patches and a decoder that predicts the pixels of the others."""

from __future__ import annotations

from ehm.config.objectives.decoding import DecodingObjective

__all__ = ["MaeObjective"]


class MaeObjective(DecodingObjective):
    """MAE, whose recipe is the defaults of the sections."""

    name = "mae"
    heads = ("decoder", "mask_token")
