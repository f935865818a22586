"""Reading configurations: YAML and ``--set`` become validated objects, or all errors at once, with file and key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ehm.config.commands import COMMANDS, list_names, recognise_command
from ehm.config.renamed import rename_keys
from ehm.config.section import Section
from ehm.errors import ConfigError
from ehm.storage.names import escape_undecodable
from ehm.storage.reading import describe_value, read_text, shorten
from ehm.suggestions import suggest, suggest_path

__all__ = ["load_config", "locate_config", "read_config", "read_mapping", "shipped_configs"]

C = TypeVar("C", bound=Section)
_YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)
"""The errors of PyYAML: ValueError for a date that does not exist and for an integer of more than 4,300 digits."""

_CHOICE = re.compile(r"'([^']*)'")
"""A value in the list of those that would be right: ``'mae', 'simmim' or 'beit'``."""

_YAML_WORDS = {
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
"""Messages for the errors of pydantic that speak of Python instead of YAML, by their type."""


def load_config(kind: type[C], file: str | Path | Mapping[str, Any] | None, overrides: Sequence[str] = ()) -> C:
    """Read ``file`` (a path or the name of a shipped one), apply ``key=value`` overrides and validate.

    A mapping counts as the contents of a file, for example the configuration that a checkpoint keeps. Raises
    ConfigError, which names everything that is wrong.
    """
    values: dict[str, Any] = {}
    origin = "the defaults"
    if isinstance(file, Mapping):
        origin = "the stored configuration"
        values = deepcopy(dict(file))
        rename_keys(values)
    elif file is not None:
        origin = str(file)
        values = read_config(file)
        rename_keys(values, origin)
    # Before the overrides, whose keys are meant for this command even if the file is for another.
    command = None if file is None else recognise_command(values, kind)
    kind.drop_superseded(values, {override.partition("=")[0] for override in overrides})
    for override in overrides:
        _apply_override(values, override)
        rename_keys(values, "--set")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        if command is not None:
            raise ConfigError(f"{origin}: is a configuration of {command}, not of {COMMANDS[kind]}") from None
        reasons = [_explain_error(detail, kind) for detail in error.errors()]
        if overrides:
            origin = "--set" if file is None else f"{origin} with --set"
        raise ConfigError(f"{origin}: {'; '.join(reasons)}") from None


def shipped_configs() -> list[str]:
    """List the names that ``--config`` takes besides paths, for example ``pretrain/vit_small_evolved``."""
    root = Path(str(files("ehm") / "configs"))
    names = [str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.yaml")]
    return sorted(names, key=_split_numbers)


def locate_config(name: str) -> Path:
    """Return the file of the path or the shipped configuration ``name``; raises ConfigError if there is none."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = Path(str(files("ehm") / "configs")) / f"{name.removesuffix('.yaml')}.yaml"
    if shipped.is_file():
        return shipped
    nearest = suggest_path(name, shipped_configs(), "/")
    raise ConfigError(f"--config {name}: no such file, and no shipped one{nearest}; ehm configs lists those")


def read_config(file: str | Path) -> dict[str, Any]:
    """Return the keys and values of ``file``, a path or the name of a shipped one, as they stand there."""
    return read_mapping(locate_config(str(file)), str(file))


def read_mapping(path: Path, origin: str) -> dict[str, Any]:
    """Return the mapping in a YAML file, empty for an empty file.

    Raises ConfigError, which begins with ``origin``, if the file is not YAML or not a mapping.
    """
    try:
        values = yaml.safe_load(read_text(path, ConfigError, "valid YAML"))
    except _YAML_ERRORS as error:
        raise ConfigError(f"{origin}: not valid YAML: {shorten(str(error), 300)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{origin}: the file must be a mapping of keys to values, not a {type(values).__name__}")
    return values


def _split_numbers(name: str) -> list[str | int]:
    """Split a name so that its numbers sort by value: 10 comes after 2."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _apply_override(values: dict[str, Any], override: str) -> None:
    """Set one key of ``values`` by ``override``, "key=value" with a dotted key."""
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


def _explain_error(detail: Any, kind: type[Section]) -> str:
    """Explain an error of pydantic: the key, the values that would be right, and the one that was given."""
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = ", ".join(_find_section(detail, kind).model_fields)
        return f"{key}: unknown key{suggest_path(key, list_names(kind))}; known here are {known}"
    message = str(detail["msg"]).removeprefix("Value error, ").removeprefix("Input ").split(", unable to parse")[0]
    message = _YAML_WORDS.get(detail["type"], message)
    if detail["type"] == "too_short":
        message = f"should have at least {detail['ctx']['min_length']} values"
    if detail["type"] in ("missing", "too_long"):  # of a list with a fixed length; the key ends with a position
        return f"{key.rstrip('.0123456789')}: wrong number of values in {describe_value(detail['input'])}"
    # a check of the whole configuration or of a section, whose message names the keys itself
    if not key or message.startswith(f"{key}."):
        return message
    if isinstance(detail["input"], dict):
        return f"{key}: {message}"
    nearest = suggest(str(detail["input"]), _CHOICE.findall(message))
    return f"{key}: {message}, not {describe_value(detail['input'])}{nearest}"


def _find_section(detail: Any, kind: type[BaseModel]) -> Any:
    """Return the class of the section that holds the key of an error."""
    section: Any = kind
    for part in detail["loc"][:-1]:
        section = section.model_fields[part].annotation
    return section
