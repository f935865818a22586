"""The pretraining objectives with torch. One more is a file here and a line in the table.

Recipe and rules of each stand in :mod:`ehm.config.objectives`, under the same name.
"""

from __future__ import annotations

import torch

from ehm.backends.torch.objectives.base import TorchObjective
from ehm.backends.torch.objectives.beit import TorchBeit
from ehm.backends.torch.objectives.feature import TorchFeature
from ehm.backends.torch.objectives.mae import TorchMae
from ehm.backends.torch.objectives.simmim import TorchSimmim
from ehm.config import TrainConfig

__all__ = ["OBJECTIVES", "TorchObjective", "create_objective"]

OBJECTIVES: dict[str, type[TorchObjective]] = {
    "mae": TorchMae,
    "simmim": TorchSimmim,
    "beit": TorchBeit,
    "feature": TorchFeature,
}


def create_objective(config: TrainConfig, device: torch.device) -> TorchObjective:
    """Return the objective of ``config``, ready to build models for ``device``."""
    return OBJECTIVES[config.objective](config, device)
