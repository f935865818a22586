"""Backends by name, found lazily: asking for one imports its framework, and nothing else does.

Another package adds a device, or a whole backend, by an entry point of the group ``ehm.backends``: its name is the
device's, its value a function ``(device: str) -> Backend`` that is called with what follows ``--device``.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ehm.errors import BackendError
from ehm.installation import build_install_command
from ehm.plugins import list_plugins
from ehm.processors import keep_processors, prepare_threads
from ehm.suggestions import suggest

if TYPE_CHECKING:
    from ehm.backends.base import Backend

__all__ = ["DEVICES", "GROUP", "find_framework", "get", "list_devices"]

DEVICES: dict[str, str] = {
    "cpu": "ehm.backends.torch:backend",
    "cuda": "ehm.backends.torch:backend",
    "npu": "ehm.backends.torch:backend",
    "mindspore": "ehm.backends.mindspore:backend",
}
"""Names of ``--device`` that ehm knows itself, and the function ``(device) -> Backend`` behind each."""

GROUP = "ehm.backends"
"""The group of entry points by which other packages add devices."""

_ORDERED_COLLECTIVES = {"HCCL_DETERMINISTIC": "true"}
"""Variables by which collectives add up in a fixed order; torch and MindSpore have settings for everything else."""

# here, because every module of ehm's that imports a framework lies below this package
prepare_threads()


def list_devices() -> dict[str, str]:
    """Return all device names of this installation and the function behind each, as ``module:function``.

    Raises BackendError if two packages claim one name.
    """
    return list_plugins(GROUP, DEVICES, "device {}", BackendError)


def find_framework(device: str) -> str:
    """Return the package that a device of ehm's own needs, which is also the extra of ehm that installs it."""
    return DEVICES[device].partition(":")[0].rpartition(".")[2]


def get(device: str = "auto", deterministic: bool = False) -> Backend:
    """Return the backend for a ``--device`` value; ``auto`` takes the fastest device that is present.

    ``deterministic`` says whether collectives shall give the same result every time. Raises BackendError naming the
    devices that exist, or the package that is missing and the command that installs it.
    """
    known = list_devices()
    name = _choose_device() if device == "auto" else device.partition(":")[0]
    if name not in known:
        raise BackendError(f"--device {device}: unknown; known are auto, {', '.join(known)}{suggest(name, known)}")
    # asked before the import, whose own error would name no remedy
    if name in DEVICES and find_spec(find_framework(name)) is None:
        package = find_framework(name)
        problem = f"--device {device}: {package} is not installed; {build_install_command(package)} installs it"
        other = _choose_device()
        if find_spec(find_framework(other)):
            problem += f", or --device {other} takes {find_framework(other)}, which is"
        raise BackendError(problem)
    module, _, function = known[name].partition(":")
    if deterministic:
        # before processes join: libraries read it once, for the first collective (HCCL itself does since CANN 8.2)
        for variable, value in _ORDERED_COLLECTIVES.items():
            os.environ.setdefault(variable, value)
    # a vendor's plug-in may pin this thread, when it is imported or when it opens the device
    with keep_processors():
        try:
            make = getattr(import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise BackendError(f"--device {device}: {known[name]} cannot be loaded: {error}") from error
        backend: Backend = make(device)
    return backend


def _choose_device() -> str:
    """Return a device of the first framework that is installed, torch's if none is."""
    for name in DEVICES:
        if find_spec(find_framework(name)) is not None:
            return name
    return "cpu"
