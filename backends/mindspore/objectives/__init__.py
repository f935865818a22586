"""The pretraining objectives with MindSpore. One more is a file here and a line in the table.

Recipe and rules of each stand in :mod:`ehm.config.objectives`, under the same name.
"""

from __future__ import annotations

from ehm.backends.mindspore.objectives.base import MindsporeObjective
from ehm.backends.mindspore.objectives.mae import MindsporeMae
from ehm.backends.mindspore.objectives.simmim import MindsporeSimmim
from ehm.config import TrainConfig
from ehm.errors import BackendError

__all__ = ["OBJECTIVES", "MindsporeObjective", "create_objective"]

OBJECTIVES: dict[str, type[MindsporeObjective]] = {
    "mae": MindsporeMae,
    "simmim": MindsporeSimmim,
}


def create_objective(config: TrainConfig) -> MindsporeObjective:
    """Return the objective of ``config``; raises BackendError for one that this backend lacks."""
    if config.objective not in OBJECTIVES:
        known = " and ".join(OBJECTIVES)
        raise BackendError(
            f"objective {config.objective}: the MindSpore backend has {known}; {config.objective} needs torch"
        )
    return OBJECTIVES[config.objective](config)
