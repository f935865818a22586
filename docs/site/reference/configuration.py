"""A page for each kind of configuration, with the type, default and meaning of each key."""

from __future__ import annotations

from itertools import groupby

from ehm.config.keys import Key, format_yaml, list_keys
from reference.markdown import escape_cell, link_guides, write_table

__all__ = ["FOLDER", "name_page", "write_configuration_pages"]

FOLDER = "reference/configuration"
_TO_DOCS = "../../"


def write_configuration_pages() -> dict[str, str]:
    """Return the Markdown of each page by its place: that of all configurations first."""
    by_command = {command: list(keys) for command, keys in groupby(list_keys(), key=lambda key: key.command)}
    pages = {f"{FOLDER}/README.md": _write_overview(by_command)}
    for command, keys in by_command.items():
        pages[f"{FOLDER}/{name_page(command)}"] = _write_keys(command, keys)
    return pages


def name_page(command: str) -> str:
    """Return the file of a command's keys: ``finetune_detection.md`` for ``ehm finetune --task detection``."""
    words = [word for word in command.split() if word not in ("ehm", "--task")]
    return "_".join(word.removeprefix("--") for word in words) + ".md"


def _write_overview(by_command: dict[str, list[Key]]) -> str:
    rows = [(f"[`{command}`]({name_page(command)})", str(len(keys))) for command, keys in by_command.items()]
    return (
        "# Configuration keys\n\n"
        f"[Configuration]({_TO_DOCS}configuration.md) explains files and `--set`. `ehm configs --keys` prints the same "
        "tables.\n\n" + write_table(("keys of", "keys"), rows)
    )


def _write_keys(command: str, keys: list[Key]) -> str:
    parts = [f"# Keys of `{command}`\n\n"]
    sections = list(dict.fromkeys(_find_section(key) for key in keys))
    for section in sections:
        group = [key for key in keys if _find_section(key) == section]
        parts.append(f"## {section or 'Without a section'}\n\n")
        parts.append(write_table(("key", "type", "default", "meaning"), [_write_key(key) for key in group]))
    return "".join(parts)


def _find_section(key: Key) -> str:
    return key.name.rpartition(".")[0].partition(".")[0]


def _write_key(key: Key) -> tuple[str, str, str, str]:
    default = "" if key.default in (None, "") else f"`{format_yaml(key.default)}`"
    meaning = link_guides(escape_cell(key.meaning), _TO_DOCS)
    return f"`{key.name}`{{#{key.name}}}", escape_cell(key.type), default, meaning
