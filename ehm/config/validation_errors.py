"""The errors of pydantic as sentences that name keys of a configuration, and values that would be right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from ehm.config.commands import list_names
from ehm.config.section import Section, find_section
from ehm.storage.reading import describe_value
from ehm.suggestions import suggest, suggest_path

__all__ = ["explain_errors"]

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


def explain_errors(error: ValidationError, kind: type[Section], only_values: bool = False) -> list[str]:
    """Return a sentence for each key of a configuration of class ``kind`` that is wrong.

    With ``only_values``, unknown keys, missing ones and rules between several keys are left out.
    """
    details: dict[str, list[Any]] = {}
    for detail in error.errors():
        # rules between keys are checks of a section, whose input is the section
        is_value = detail["type"] not in ("extra_forbidden", "missing") and not isinstance(detail["input"], dict)
        if only_values and not is_value:
            continue
        key, _ = _locate_key(detail["loc"], kind)
        # a key that takes several types of values has an error for each of them
        details.setdefault(key, []).append(detail)
    return [_explain_key(key, each, kind) for key, each in details.items()]


def _explain_key(key: str, details: Sequence[Any], kind: type[Section]) -> str:
    """Return what is wrong with ``key``, the value that was given, and those that would be right."""
    detail = details[0]
    if detail["type"] == "extra_forbidden":
        _, section = _locate_key(detail["loc"], kind)
        prefix = key[: key.rfind(".") + 1]
        # list_names knows no positions in lists, and so not the keys of sections in a list
        names = [*(prefix + name for name in section.model_fields), *list_names(kind)]
        return f"{key}: unknown key{suggest_path(key, names)}; known here are {', '.join(section.model_fields)}"
    if detail["type"] == "missing" and isinstance(detail["loc"][-1], str):
        return f"{key}: is missing"
    if detail["type"] in ("missing", "too_long"):  # of a list with a fixed length; the key ends with a position
        return f"{key.rstrip('.0123456789')}: wrong number of values in {describe_value(detail['input'])}"
    first, *others = (_describe_problem(each) for each in details)
    message = ", or ".join([first, *(other.removeprefix("should ") for other in others)])
    # a check of the whole configuration or of a section, whose message names the keys itself
    if not key or message.startswith(f"{key}."):
        return message
    if isinstance(detail["input"], dict):
        return f"{key}: {message}"
    nearest = suggest(str(detail["input"]), _CHOICE.findall(message))
    return f"{key}: {message}, not {describe_value(detail['input'])}{nearest}"


def _describe_problem(detail: Any) -> str:
    """Return the message of one error in the words of YAML, for example "should be a whole number"."""
    if detail["type"] == "too_short":
        least = detail["ctx"]["min_length"]
        return f"should have at least {least} value{'' if least == 1 else 's'}"
    message = str(detail["msg"]).removeprefix("Value error, ").removeprefix("Input ").split(", unable to parse")[0]
    return _YAML_WORDS.get(detail["type"], message)


def _locate_key(location: Sequence[str | int], kind: type[Section]) -> tuple[str, type[Section]]:
    """Return the dotted key of an error of pydantic, and the section that has it.

    ``location`` has keys, and positions in lists; after a key that takes several types of values it names one of these
    types, which is left out.
    """
    parts: list[str] = []
    section = kind
    annotation: Any = kind
    for part in location:
        held = find_section(annotation)
        if held is not None:
            section = held
            field = held.model_fields.get(str(part))
            annotation = None if field is None else field.annotation
        elif isinstance(part, int) or get_origin(annotation) is dict:
            # of a list the type of its values comes first, of a mapping last
            types = get_args(annotation)
            if types:
                annotation = types[-1] if get_origin(annotation) is dict else types[0]
        else:
            continue
        parts.append(str(part))
    return ".".join(parts), section
