"""Keys of earlier versions that have another name now: they are read for two versions, with a warning.

docs/stability.md lists them.
A configuration that a checkpoint keeps is read without a warning, as nobody can change it, and for good.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ehm.console import PlainConsole

__all__ = ["RENAMED", "RenamedKey", "rename_in_section", "rename_keys"]


@dataclass(frozen=True)
class RenamedKey:
    """A key ``old`` of a section that is called ``new`` since a version, and is last read from a user in ``last``.

    ``convert`` turns a value of the old key into one of the new, and raises ValueError for one that it cannot turn.
    """

    section: str
    old: str
    new: str
    since: str
    last: str
    convert: Callable[[Any], Any]


def _list_trackers(value: object) -> list[str]:
    """Return the trackers that ``run.tensorboard`` asked for, which was true or false before there were others."""
    if not isinstance(value, bool):
        raise ValueError(f"tensorboard should be true or false, not {value!r}; its new name is run.trackers")
    return ["tensorboard"] if value else []


RENAMED = (RenamedKey("run", "tensorboard", "trackers", since="0.2", last="0.3", convert=_list_trackers),)
"""All keys with another name; a test fails when the version is past the last that has to read one."""

_warned: set[str] = set()
"""Keys that this process has warned of."""


def rename_keys(values: dict[str, Any], origin: str | None = None) -> None:
    """Give keys of a configuration their new names, in place; warn of each once if ``origin`` is a user's.

    A value that cannot be converted stays where it is, and is refused together with all other errors.
    """
    for key in RENAMED:
        section = values.get(key.section)
        if not isinstance(section, dict) or key.old not in section:
            continue
        try:
            converted = key.convert(section[key.old])
        except ValueError:
            continue
        del section[key.old]
        section[key.new] = converted
        if origin is not None:
            _warn(key, converted, origin)


def rename_in_section(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the section ``name`` with the new names of its keys; raises ValueError for a value that is wrong.

    What stands under the new name beside an old one may be a default, which does not count.
    """
    renamed = dict(values)
    for key in RENAMED:
        if key.section == name and key.old in renamed:
            renamed[key.new] = key.convert(renamed.pop(key.old))
    return renamed


def _warn(key: RenamedKey, value: Any, origin: str) -> None:
    old = f"{key.section}.{key.old}"
    if old in _warned:
        return
    _warned.add(old)
    new = f"{key.section}.{key.new}"
    taken = f"[{', '.join(value)}]" if isinstance(value, list) else value
    PlainConsole(stderr=True).print(
        f"{origin}: {old} is now called {new}; taking {new}={taken}. ehm {key.last} is the last to read the old name"
    )
