"""Trackers by name: ehm's own, and those of other packages."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import cast

from ehm.errors import ConfigError
from ehm.installation import build_install_command
from ehm.plugins import list_plugins
from ehm.suggestions import suggest
from ehm.training.trackers.base import Tracker

__all__ = ["GROUP", "TRACKERS", "check_trackers", "list_trackers", "make_tracker"]

TRACKERS = {
    "tensorboard": "ehm.training.trackers.tensorboard:TensorBoardTracker",
    "wandb": "ehm.training.trackers.wandb:WandbTracker",
    "mlflow": "ehm.training.trackers.mlflow:MlflowTracker",
    "swanlab": "ehm.training.trackers.swanlab:SwanLabTracker",
}
"""Names that ehm knows itself, and the class behind each."""
GROUP = "ehm.trackers"
"""The group of entry points by which other packages add trackers."""
_OPTIONAL = ("wandb", "mlflow", "swanlab")
"""Trackers whose library, and the extra of ehm that installs it, have their name."""


def list_trackers() -> dict[str, str]:
    """Return the names of all trackers of this installation and the class behind each, as ``module:class``.

    Raises ConfigError if two packages claim one name.
    """
    return list_plugins(GROUP, TRACKERS, "run.trackers {}:", ConfigError)


def check_trackers(names: Iterable[str]) -> None:
    """Raise ConfigError if one of ``names`` is unknown or its library is not installed."""
    known = list_trackers()
    for name in names:
        if name not in known:
            raise ConfigError(f"run.trackers {name}: unknown; known are {', '.join(known)}{suggest(name, known)}")
        if name in _OPTIONAL and find_spec(name) is None:
            raise ConfigError(
                f"run.trackers {name}: its library is not installed; {build_install_command(name)} installs it"
            )


def make_tracker(name: str) -> Tracker:
    """Return a tracker that has not been started; whatever its module raises passes."""
    module, _, function = list_trackers()[name].partition(":")
    return cast(Tracker, getattr(import_module(module), function)())
