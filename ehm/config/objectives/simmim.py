"""SimMIM (Xie et al., 2022): an encoder of all patches, a linear layer that predicts the pixels of the hidden ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from ehm.config.objectives.base import Objective

__all__ = ["SimmimObjective"]


class SimmimObjective(Objective):
    """SimMIM as in microsoft/SimMIM, configs/vit_base__800ep and configs/swin_base__100ep."""

    name = "simmim"
    relative_vit = True
    undecayed = ("cls_token", "mask_token")
    heads = ("decoder", "mask_token")
    recipe: ClassVar[Mapping[str, Any]] = {
        "model": {"drop_path": 0.1},
        "mask": {"ratio": 0.6, "unit": 32},
        "data": {"crop_scale": (0.67, 1)},
        "optim": {
            "batch_size": 2048,
            "base_lr": 5e-5,
            "warmup_epochs": 10,
            "betas": (0.9, 0.999),
            "clip_grad": 5.0,
        },
    }

    def compute_hidden_ratio(self, ratio: float, units: int) -> float:
        """See :meth:`Objective.compute_hidden_ratio`. The published code rounds the number of hidden units up."""
        # without the inner rounding, 0.6 of 5 units, 3.0000000000000004, would be 4
        return math.ceil(round(ratio * units, 6)) / units
