"""The base of every section of a configuration."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, model_validator

__all__ = ["Section", "find_section", "flatten"]


class Section(BaseModel):
    """Base of all sections: immutable, and strict about names."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    # Without it, every subclass that changes a default would have to repeat the description.
    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Keep the description of a key if a subclass changes its default or its type only."""
        super().__pydantic_init_subclass__(**kwargs)
        for name, field in cls.model_fields.items():
            inherited = getattr(cls.__base__, "model_fields", {}).get(name)
            if field.description is None and inherited is not None:
                field.description = inherited.description

    @model_validator(mode="before")
    @classmethod
    def _keep_defaults(cls, values: Any) -> Any:
        """Complete a section given in part by the defaults of the recipe that holds it, not by those of its class."""
        if not isinstance(values, dict):
            return values
        # pydantic would fill a section from the defaults of its class: epochs 300 instead of the 100 of a recipe.
        completed = dict(values)
        for key, value in values.items():
            default = cls.model_fields[key].default if key in cls.model_fields else None
            if isinstance(value, dict) and isinstance(default, Section):
                completed[key] = default.model_dump() | value
        return completed

    @classmethod
    def drop_superseded(cls, values: dict[str, Any], overridden: Collection[str]) -> None:
        """Remove from ``values``, those of a file, what the dotted keys ``overridden`` by a user make meaningless.

        Sections with such keys override this; the others have none.
        """


def find_section(annotation: Any) -> type[Section] | None:
    """Return the section that a key of the type ``annotation`` holds, which may also be null; None if it holds none."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested sections as one dictionary with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
