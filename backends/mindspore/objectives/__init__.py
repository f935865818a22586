"""The pretraining objectives with MindSpore. One more is a file here and a line in the table.

Recipe and rules of each stand in :mod:`ehm.config.objectives`, under the same name.
"""

from __future__ import annotations

from ehm.backends.mindspore.objectives.base import MindsporeObjective
from ehm.backends.mindspore.objectives.beit import MindsporeBeit
from ehm.backends.mindspore.objectives.feature import MindsporeFeature
from ehm.backends.mindspore.objectives.mae import MindsporeMae
from ehm.backends.mindspore.objectives.simmim import MindsporeSimmim
from ehm.config import TrainConfig

__all__ = ["OBJECTIVES", "MindsporeObjective", "create_objective"]

OBJECTIVES: dict[str, type[MindsporeObjective]] = {
    "mae": MindsporeMae,
    "simmim": MindsporeSimmim,
    "beit": MindsporeBeit,
    "feature": MindsporeFeature,
}


def create_objective(config: TrainConfig) -> MindsporeObjective:
    """Return the objective of ``config``, ready to build models."""
    return OBJECTIVES[config.objective](config)
