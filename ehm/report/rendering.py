"""The templates of this package, and the jinja environment that renders them with every value escaped."""

from __future__ import annotations

from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined

from ehm.report.numbers import format_share

__all__ = ["create_environment", "read_template"]

_TEMPLATES = files("ehm.report") / "templates"


def create_environment() -> Environment:
    """Return an environment of jinja for the templates of this package."""
    environment = Environment(
        # because most values are names of classes, files and folders, which may contain anything
        autoescape=True,
        loader=FunctionLoader(read_template),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["share"] = format_share
    return environment


def read_template(name: str) -> str:
    """Return the text of a template, a style sheet or a script."""
    return (_TEMPLATES / name).read_text(encoding="utf-8")
