"""``ehm configs --keys``: every key of a configuration with its type, default and meaning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import yaml
from rich.table import Column, Table

from ehm.config.commands import COMMANDS
from ehm.config.section import Section
from ehm.console import PlainConsole, print_line
from ehm.errors import ConfigError
from ehm.suggestions import suggest, suggest_path

__all__ = ["Key", "describe_type", "format_yaml", "list_keys", "print_keys"]

_TYPE_WORDS = {"string": "text", "boolean": "true or false", "null": "null", "object": "section"}
_LARGEST_BOUND = 2**31
"""Bounds from here on only keep numbers within what the file formats can hold; nobody needs to read them."""


@dataclass(frozen=True)
class Key:
    """A key of the configuration of ``command``; ``name`` is dotted, as ``--set`` takes it."""

    command: str
    name: str
    type: str
    default: Any
    meaning: str


def list_keys(section: str = "") -> list[Key]:
    """Return the keys of all commands, or those that ``section`` names: a command, a task, a section or a key.

    Raises ConfigError if there is no such section.
    """
    keys: list[Key] = []
    for kind, command in COMMANDS.items():
        keys += _describe_section(command, kind(), "")
    chosen = [key for key in keys if _belongs(key, section)]
    if not chosen:
        sections = sorted({key.name.rpartition(".")[0] for key in keys} - {""})
        nearest = suggest(section, sections) or suggest_path(section, [key.name for key in keys])
        known = ", ".join(sections)
        raise ConfigError(f"--keys {section}: no such section or key{nearest}; the sections are {known}")
    return chosen


def print_keys(section: str = "", as_json: bool = False) -> None:
    """Print the keys: a table for each command on a terminal, else one line of tab-separated fields for each key."""
    keys = list_keys(section)
    console = PlainConsole(soft_wrap=False)
    if as_json:
        print_line(json.dumps([vars(key) for key in keys], indent=2))
    elif console.is_terminal:
        for command, group in groupby(keys, key=lambda key: key.command):
            table = Table(
                Column("key", no_wrap=True), "type", "default", "meaning", title=command, title_justify="left"
            )
            for key in group:
                table.add_row(key.name, key.type, format_yaml(key.default), key.meaning)
            console.print(table)
    else:
        for key in keys:
            print_line("\t".join([key.command, key.name, key.type, format_yaml(key.default), key.meaning]))


def _describe_section(command: str, section: Section, prefix: str) -> Iterator[Key]:
    """Yield the keys of ``section``, whose values are the defaults, and of the sections in it."""
    # The JSON schema states types and bounds in one form, however they are annotated.
    schema = type(section).model_json_schema()["properties"]
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _describe_section(command, value, f"{prefix}{name}.")
        else:
            yield Key(command, prefix + name, describe_type(schema[name]), _to_plain(value), field.description or "")


def describe_type(schema: dict[str, Any]) -> str:
    """Describe a value of a JSON schema in words, for example "integer >= 1 or null"."""
    if "anyOf" in schema:
        return " or ".join(describe_type(choice) for choice in schema["anyOf"])
    if "const" in schema:
        return str(schema["const"]).lower()
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    if "$ref" in schema:
        return _TYPE_WORDS["object"]
    if "prefixItems" in schema:
        items = schema["prefixItems"]
        return f"list of {len(items)}, each {describe_type(items[0])}"
    if "items" in schema:
        return f"list, each {describe_type(schema['items'])}"
    return _describe_number(schema) if schema["type"] in ("integer", "number") else _TYPE_WORDS[schema["type"]]


def _describe_number(schema: dict[str, Any]) -> str:
    """Describe a number with its bounds, for example "0 < number <= 1"."""
    text = str(schema["type"])
    upper = schema.get("maximum", schema.get("exclusiveMaximum", _LARGEST_BOUND))
    if upper >= _LARGEST_BOUND:
        if "minimum" in schema:
            text += f" >= {schema['minimum']:g}"
        elif "exclusiveMinimum" in schema:
            text += f" > {schema['exclusiveMinimum']:g}"
        return text
    text += f" <= {upper:g}" if "maximum" in schema else f" < {upper:g}"
    if "minimum" in schema:
        return f"{schema['minimum']:g} <= {text}"
    return f"{schema['exclusiveMinimum']:g} < {text}"


def _to_plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def format_yaml(value: Any) -> str:
    """Return ``value`` in one line of YAML, as a configuration would say it."""
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _belongs(key: Key, section: str) -> bool:
    """Return whether ``section`` is the key's command or task, a section that holds it, or the key itself."""
    # "ehm finetune --task detection" belongs to detection, "ehm tokenizer train" to tokenizer
    words = key.command.split()
    owner = words[-1] if "--task" in words else words[1]
    first, _, rest = section.partition(".")
    if first == owner:
        section = rest
    return not section or f".{section}." in f".{key.name}."
