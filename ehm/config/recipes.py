"""The published recipes of an objective and of an encoder family, as defaults below what a configuration says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ehm.config.encoders import PRESETS, find_family
from ehm.config.objectives import OBJECTIVES

__all__ = ["add_recipe"]


def add_recipe(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` of a pretraining run over those of its encoder's recipe, over those of its objective's."""
    recipe: Mapping[str, Any] = {}
    objective = OBJECTIVES.get(str(values.get("objective")))
    if objective is not None:
        recipe = objective.recipe
    encoder = str(values.get("encoder"))
    if encoder in PRESETS:
        recipe = _merge_sections(find_family(encoder).recipe, recipe)
    return _merge_sections(values, recipe)


def _merge_sections(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``defaults`` with ``values`` over them, section by section."""
    merged = {**defaults, **values}
    for key in values.keys() & defaults.keys():
        if isinstance(values[key], Mapping) and isinstance(defaults[key], Mapping):
            merged[key] = {**defaults[key], **values[key]}
    return merged
