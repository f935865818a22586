"""The interface of a pretraining objective, as far as all backends share it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from ehm.config.pretraining import TrainConfig

__all__ = ["Objective"]


class Objective:
    """The recipe and the rules of one objective, the same on every backend; a subclass states what it has."""

    name: str
    recipe: ClassVar[Mapping[str, Any]] = {}
    """Values of its published recipe that are not the defaults of the sections, which are MAE's. Learning rates are per
    256 images."""
    relative_vit: bool = False
    """True if the ViT of this objective has relative positions."""
    undecayed: tuple[str, ...] = ()
    """Parameters, by timm's names, that its published code does not decay although they are matrices."""
    heads: tuple[str, ...] = ()
    """Beginnings of the names of the parameters that it has beside the encoder."""

    has_teacher: bool = False
    """True if hidden patches are predicted as a teacher sees them, which masks may go by too."""

    def check(self, config: TrainConfig) -> None:
        """Raise ValueError, which names the key, if ``config`` asks for what this objective does not have."""
        if config.model.tokenizer is not None:
            raise ValueError(f"model.tokenizer {config.model.tokenizer}: is for objective beit, not {self.name}")

    def needs_first_weights(self, config: TrainConfig) -> bool:
        """Tell whether a run that is resumed still needs the weights in ``model.init``, the same as it began with."""
        return False

    def compute_hidden_ratio(self, ratio: float, units: int) -> float:
        """Return the share of ``units`` mask units that ``mask.ratio`` = ``ratio`` hides, before it is rounded."""
        return ratio
