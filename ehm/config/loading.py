"""From YAML and ``--set`` to a validated configuration, with every error at once, its file and its key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ehm.config.commands import COMMANDS, recognise_command
from ehm.config.sections import Section
from ehm.errors import ConfigError
from ehm.storage.names import escape_undecodable
from ehm.storage.reading import describe_value, read_text, shorten

__all__ = ["load_config", "locate", "read_config", "read_mapping", "shipped_configs"]

C = TypeVar("C", bound=Section)
_YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)
"""What PyYAML raises: ValueError for a date that does not exist and for an integer of more than 4,300 digits."""


def load_config(kind: type[C], file: str | Path | Mapping[str, Any] | None, overrides: Sequence[str] = ()) -> C:
    """Read ``file`` (a path or the name of a shipped one), apply ``key=value`` overrides and validate.

    A mapping is taken for a file's contents, for example the configuration that a checkpoint keeps.
    Raises ConfigError with one line for each thing that is wrong.
    """
    values: dict[str, Any] = {}
    origin = "the defaults"
    if isinstance(file, Mapping):
        origin = "the stored configuration"
        values = deepcopy(dict(file))
    elif file is not None:
        origin = str(file)
        values = read_config(file)
    command = None if file is None else recognise_command(values, kind)
    for override in overrides:
        _apply(values, override)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        if command is not None:
            raise ConfigError(f"{origin}: is a configuration of {command}, not of {COMMANDS[kind]}") from None
        lines = [_explain(detail, kind) for detail in error.errors()]
        where = "--set" if overrides and file is None else origin + (" with --set" if overrides else "")
        raise ConfigError(f"{where}: " + "; ".join(lines)) from None


def shipped_configs() -> list[str]:
    """Names that ``--config`` takes besides paths, for example ``pretrain/vit_small_evolved``; 10 comes after 2."""
    root = Path(str(files("ehm") / "configs"))
    names = (str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.yaml"))
    return sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def locate(name: str) -> Path:
    """The file that ``name`` means: a path, or a shipped one; ConfigError where there is none."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = Path(str(files("ehm") / "configs")) / f"{name.removesuffix('.yaml')}.yaml"
    if shipped.is_file():
        return shipped
    raise ConfigError(f"--config {name}: no such file, and no shipped one; ehm configs lists those")


def read_config(file: str | Path) -> dict[str, Any]:
    """The keys and values of ``file``, a path or the name of a shipped one, as they stand there."""
    return read_mapping(locate(str(file)), str(file))


def read_mapping(path: Path, origin: str) -> dict[str, Any]:
    """What a YAML file holds, nothing for an empty one; ConfigError, after ``origin``, where it is no mapping."""
    try:
        values = yaml.safe_load(read_text(path, ConfigError, "valid YAML"))
    except _YAML_ERRORS as error:
        raise ConfigError(f"{origin}: not valid YAML: {shorten(str(error), 300)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{origin}: the file must be a mapping of keys to values, not a {type(values).__name__}")
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: expected key=value, for example optim.epochs=20")
    if escape_undecodable(text) != text:
        raise ConfigError(f"--set {override}: is not UTF-8; give a link to that file or folder whose name is")
    *parents, leaf = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override}: {parent} is a value, not a section")
    try:
        values[leaf] = yaml.safe_load(text)
    except _YAML_ERRORS:
        raise ConfigError(f"--set {shorten(override)}: {describe_value(text)} is not a YAML value") from None


_PLAIN = {
    "tuple_type": "should be a list",
    "model_type": "should be a section of keys and values",
    "bool_parsing": "should be true or false",
    "int_parsing": "should be a whole number",
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_parsing": "should be a number",
    "float_type": "should be a number",
    "string_type": "should be text",
}
"""Pydantic's words where they speak of Python instead of YAML."""


def _explain(detail: Any, kind: type[BaseModel]) -> str:
    """One error of pydantic as a line: the key, what would be right, what was there."""
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"{key}: unknown key; known here are {', '.join(_section(detail, kind).model_fields)}"
    message = str(detail["msg"]).removeprefix("Value error, ").removeprefix("Input ").split(", unable to parse")[0]
    message = _PLAIN.get(detail["type"], message)
    if detail["type"] == "too_short":
        message = f"should have at least {detail['ctx']['min_length']} values"
    if detail["type"] in ("missing", "too_long"):
        return f"{key.rstrip('.0123456789')}: wrong number of values in {describe_value(detail['input'])}"
    if not key:
        return message
    if isinstance(detail["input"], dict):
        return f"{key}: {message}"
    return f"{key}: {message}, not {describe_value(detail['input'])}"


def _section(detail: Any, kind: type[BaseModel]) -> Any:
    """The class of the section that an error's key is in."""
    section: Any = kind
    for part in detail["loc"][:-1]:
        section = section.model_fields[part].annotation
    return section
