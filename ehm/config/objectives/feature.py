"""Feature prediction: an encoder of the visible patches, and a light decoder that predicts a teacher's features.

The teacher sees the whole image. It is the encoder that the run begins with, as in MILAN and EVA, whose teachers are
frozen, or the moving average of the model, as in data2vec (Baevski et al., 2022) and I-JEPA (Assran et al., 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ehm.config.objectives.decoding import DecodingObjective

if TYPE_CHECKING:
    from ehm.config.pretraining import TrainConfig

__all__ = ["FeatureObjective"]


class FeatureObjective(DecodingObjective):
    """Feature prediction with data2vec's loss and optimiser and I-JEPA's decoder and moving average.

    Read from facebookresearch/fairseq, examples/data2vec (the command for ViT-B), and facebookresearch/ijepa. I-JEPA's
    decay rises over the whole run, however long that is; data2vec's suits its 800 epochs of ImageNet only.
    """

    name = "feature"
    heads = ("decoder", "mask_token", "feature_pred")
    has_teacher = True
    recipe: ClassVar[Mapping[str, Any]] = {
        "model": {"decoder_width": 384, "decoder_depth": 6, "decoder_heads": 12},
        "mask": {"source": "teacher"},
        "optim": {
            "batch_size": 2048,
            "base_lr": 2.5e-4,
            "warmup_epochs": 10,
            "betas": (0.9, 0.999),
            "clip_grad": 3.0,
            "ema_decay": (0.996, 1.0),
        },
    }

    def check(self, config: TrainConfig) -> None:
        """See :meth:`Objective.check`."""
        super().check(config)
        model = config.model
        if model.teacher == "start":
            if model.init is None:
                raise ValueError("model.teacher start needs model.init: the encoder whose features are predicted")
            if model.teacher_blocks is not None:
                raise ValueError(
                    f"model.teacher_blocks {model.teacher_blocks}: is for model.teacher ema; the features of teacher "
                    "start are those after its last norm"
                )
            return
        if config.optim.ema_decay is None:
            raise ValueError("model.teacher ema needs optim.ema_decay, for example [0.996, 1]")
        blocks = config.spec.blocks
        if model.teacher_blocks is not None and model.teacher_blocks > blocks:
            raise ValueError(f"model.teacher_blocks {model.teacher_blocks}: {config.encoder} has {blocks} blocks")

    def needs_first_weights(self, config: TrainConfig) -> bool:
        """See :meth:`Objective.needs_first_weights`. A frozen teacher is not in the checkpoints."""
        return config.model.teacher == "start"
