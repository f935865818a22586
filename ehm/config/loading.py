"""Reading configurations: YAML and ``--set`` become validated objects, or all errors at once, with file and key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from ehm.config.commands import COMMANDS, recognise_command
from ehm.config.renamed import rename_keys
from ehm.config.section import Section
from ehm.config.validation_errors import explain_errors
from ehm.errors import ConfigError
from ehm.storage.names import escape_undecodable
from ehm.storage.reading import describe_value, read_text, shorten
from ehm.suggestions import suggest_path

__all__ = ["load_config", "locate_config", "read_config", "read_mapping", "shipped_configs"]

C = TypeVar("C", bound=Section)
_YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)
"""The errors of PyYAML: ValueError for a date that does not exist and for an integer of more than 4,300 digits."""


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
        if overrides:
            origin = "--set" if file is None else f"{origin} with --set"
        raise ConfigError(f"{origin}: {'; '.join(explain_errors(error, kind))}") from None


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
    raise ConfigError(
        f"{name}: no such file, and no shipped configuration of that name{nearest}; ehm configs lists them"
    )


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
