"""Backends by name, found lazily: asking for one imports its framework, and nothing else does."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ehm.errors import BackendError

if TYPE_CHECKING:
    from ehm.backends.base import Backend

__all__ = ["DEVICES", "get"]

DEVICES: dict[str, str] = {
    "cpu": "ehm.backends.torch",
    "cuda": "ehm.backends.torch",
}
"""Device names of ``--device`` and the package whose ``backend(device)`` serves them."""


def get(device: str = "auto") -> Backend:
    """The backend for a ``--device`` value; ``auto`` takes the fastest device that is present.

    Raises BackendError naming the devices that exist, or the package that is missing and the command that installs it.
    """
    name = device.partition(":")[0]
    if name != "auto" and name not in DEVICES:
        raise BackendError(f"--device {device}: unknown; known are auto, {', '.join(DEVICES)}")
    package = DEVICES["cpu" if name == "auto" else name]
    framework = package.rpartition(".")[2]
    if find_spec(framework) is None:
        raise BackendError(
            f"--device {device}: {framework} is not installed; pip install 'ehm[{framework}]' installs it"
        )
    backend: Backend = import_module(package).backend(device)
    return backend
