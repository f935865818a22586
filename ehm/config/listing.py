"""``ehm configs``: the configurations that come with ehm, described by their own headers.

A header is the comment that a file begins with. It describes the configuration; then come lines with the label
``Paper:`` or ``Reproduces:`` and ``Cost:``, each of which may go on in indented lines; and then, indented and without a
label, the command that runs it.
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
from ehm.config.loading import locate_config, shipped_configs
from ehm.console import PlainConsole, print_line
from ehm.errors import ConfigError
from ehm.storage.reading import read_text

__all__ = ["ShippedConfig", "configs", "describe_config"]

_LABEL = re.compile(r"([A-Z][a-z ]+): (.*)")


@dataclass(frozen=True)
class ShippedConfig:
    """A shipped configuration, as its header describes it."""

    name: str
    about: str
    """The first sentence of its header."""
    reproduces: str
    """Table and number of a publication, empty if it reproduces none."""
    cost: str
    """Cost of a run, counted from the shapes; empty if it is not stated."""
    command: tuple[str, ...]
    """The words of the command that runs it."""


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
    names = shipped_configs()
    if name is not None:
        folder_prefix = f"{name.rstrip('/')}/"
        names = [each for each in names if each.startswith(folder_prefix)]
    if name is not None and not names:
        print_line(read_text(locate_config(name), ConfigError).removesuffix("\n"))
        return
    found = [describe_config(each) for each in names]
    if json:
        print(dumps([asdict(each) for each in found], indent=2))
        return
    _print_table(found)


def _print_table(found: list[ShippedConfig]) -> None:
    table = Table(
        # Names are there to copy, so they are never broken.
        Column("--config", min_width=2 + max(len(Path(each.name).name) for each in found)),
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


def describe_config(name: str) -> ShippedConfig:
    """Read the header of the shipped configuration ``name``."""
    label = ""  # of the line that is read; the description has none
    texts = {label: ""}
    command: list[str] = []
    for line in locate_config(name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#")
        labelled = _LABEL.fullmatch(text.strip())
        if text.startswith("   ehm ") or command:  # the command is the last thing in a header
            command += shlex.split(text.removesuffix("\\"))
        elif labelled:
            label = labelled[1]
            texts[label] = labelled[2]
        else:
            texts[label] = f"{texts[label]} {text.strip()}".strip()
    reproduces = texts.get("Paper") or texts.get("Reproduces", "")
    # The first sentence ends at a full stop before a capital letter, not within "ViT-S/16 et al. 2021".
    about = re.split(r"(?<=\.) (?=[A-Z])", texts[""])[0]
    return ShippedConfig(name, about, reproduces, texts.get("Cost", ""), tuple(command))
