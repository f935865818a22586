"""``ehm configs``: the shipped configurations, what they are and what they reproduce, as their own headers say.

A header is the comment that a file begins with: first what it is, then lines ``Paper:`` or ``Reproduces:`` and
``Cost:``, each of which may go on in indented lines, and indented, without a label, the command that runs it.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict, dataclass
from itertools import groupby
from json import dumps
from pathlib import Path

from rich.table import Column, Table
from rich.text import Text

from ehm.config.keys import print_keys
from ehm.config.loading import locate, shipped_configs
from ehm.console import PlainConsole, print_line
from ehm.errors import ConfigError
from ehm.storage.reading import read_text

__all__ = ["Shipped", "configs", "describe"]

_LABEL = re.compile(r"([A-Z][a-z ]+): (.*)")


@dataclass(frozen=True)
class Shipped:
    """A shipped configuration: ``about`` is its first sentence, ``command`` the words that run it.

    ``reproduces`` are a publication's table and number, ``cost`` is counted from the shapes; empty where it has none.
    """

    name: str
    about: str
    reproduces: str
    cost: str
    command: tuple[str, ...]


def configs(name: str | None = None, keys: str | None = None, json: bool = False) -> None:
    """Print the shipped configurations of the folder ``name`` or of all folders, or the file ``name`` as it stands.

    With ``keys`` prints the keys of the section of that name instead, of all sections if it is empty. Raises
    ConfigError if there is no such file, folder or section.
    """
    if keys is not None:
        if name is not None:
            raise ConfigError(f"{name}: --keys lists the keys of all configurations; leave {name} out")
        print_keys(keys, json)
        return
    known = shipped_configs()
    names = known if name is None else [each for each in known if each.startswith(f"{name.rstrip('/')}/")]
    if name is not None and not names:
        print_line(read_text(locate(name), ConfigError).removesuffix("\n"))
        return
    found = [describe(each) for each in names]
    if json:
        print(dumps([asdict(each) for each in found], indent=2))
        return
    table = Table(
        Column("--config", min_width=2 + max(len(Path(each.name).name) for each in found)),  # names are there to copy
        "what it is",
        "reproduces: published, not measured here",
        title="shipped configurations",
    )
    for folder, group in groupby(found, lambda each: Path(each.name).parent):
        table.add_row(Text(f"{folder}/", style="bold"))
        for each in group:
            table.add_row(f"  {Path(each.name).name}", each.about, each.reproduces)
        table.add_section()
    console = PlainConsole(soft_wrap=False)
    console.print(table)
    console.print(
        "ehm configs FOLDER lists one folder; ehm configs FOLDER/NAME shows a file: its cost and its command."
    )


def describe(name: str) -> Shipped:
    """What the header of the shipped configuration ``name`` says."""
    parts, label = {"": ""}, ""
    command: list[str] = []
    for line in locate(name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#")
        if text.startswith("   ehm ") or command:
            command += shlex.split(text.removesuffix("\\"))
        elif found := _LABEL.fullmatch(text.strip()):
            label = found[1]
            parts[label] = found[2]
        else:
            parts[label] = f"{parts[label]} {text.strip()}".strip()
    reproduces = parts.get("Paper") or parts.get("Reproduces", "")
    about = re.split(r"(?<=\.) (?=[A-Z])", parts[""])[0]
    return Shipped(name, about, reproduces, parts.get("Cost", ""), tuple(command))
