"""The pretraining objectives. One more is a file here, a line in the table, and a file and a line in each backend."""

from ehm.config.objectives.base import Objective
from ehm.config.objectives.beit import BeitObjective
from ehm.config.objectives.feature import FeatureObjective
from ehm.config.objectives.mae import MaeObjective
from ehm.config.objectives.simmim import SimmimObjective

__all__ = ["OBJECTIVES", "Objective"]

OBJECTIVES: dict[str, Objective] = {
    "mae": MaeObjective(),
    "simmim": SimmimObjective(),
    "beit": BeitObjective(),
    "feature": FeatureObjective(),
}
"""The objectives by the name that a configuration gives them."""
