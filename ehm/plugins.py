"""Devices and trackers that other packages add to ehm by entry points."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points

from ehm.errors import EhmError

__all__ = ["list_plugins"]


def list_plugins(group: str, known: Mapping[str, str], subject: str, error: type[EhmError]) -> dict[str, str]:
    """Return the names that are ``known`` and those that packages add to ``group``, with ``module:name`` behind each.

    Raises ``error`` if two packages claim one name; its sentence begins with ``subject``, in which {} is the name.
    """
    names = dict(known)
    for entry in entry_points(group=group):
        # a package that is installed twice is found twice, and claims nothing twice
        if names.get(entry.name, entry.value) != entry.value:
            raise error(
                f"{subject.format(entry.name)} is claimed twice, by {names[entry.name]} and by {entry.value} "
                f"(entry points {group}): uninstall one of the two packages"
            )
        names[entry.name] = entry.value
    return names
