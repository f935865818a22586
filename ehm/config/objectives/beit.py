"""BEiT (Bao et al., 2022): an encoder of all patches, a linear layer that predicts visual tokens of the hidden ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ehm.config.data import require_photographs
from ehm.config.objectives.base import Objective

if TYPE_CHECKING:
    from ehm.config.pretraining import TrainConfig

__all__ = ["BeitObjective"]


class BeitObjective(Objective):
    """BEiT as in microsoft/unilm, beit/get_started_for_image_classification.md."""

    name = "beit"
    relative_vit = True
    undecayed = ("cls_token",)
    heads = ("lm_head", "mask_token")
    recipe: ClassVar[Mapping[str, Any]] = {
        "model": {"drop_path": 0.1},
        "mask": {"ratio": 0.4},
        "data": {
            "crop_scale": (0.08, 1),
            "color_jitter": 0.4,
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
        },
        "optim": {
            "batch_size": 2048,
            "base_lr": 1.875e-4,
            "warmup_epochs": 10,
            "betas": (0.9, 0.999),
            "clip_grad": 3.0,
        },
    }

    def check(self, config: TrainConfig) -> None:
        """Refuse images that no tokenizer takes; a missing tokenizer is reported when the learner opens it."""
        require_photographs(config.data, "objective beit, whose tokens are those of a tokenizer,")
