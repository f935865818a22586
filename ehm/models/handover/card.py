"""The model card of an encoder's folder: a README.md with the front matter that the Hugging Face Hub shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

__all__ = ["CardFacts", "write_card_text"]

Library = Literal["timm", "transformers"]
_FEW = 20
"""Classes that are named one by one."""


@dataclass(frozen=True)
class CardFacts:
    """Facts about the training of an encoder.

    ``training`` are sentences, newest first; ``base_model`` is the published model that it began with, by its name on
    the Hub; ``tags`` and ``datasets`` are those of the Hub. ``data_license`` is Markdown.
    """

    training: Sequence[str] = ()
    base_model: str | None = None
    datasets: Sequence[str] = ()
    tags: Sequence[str] = ()
    data_license: str = "not stated"


@dataclass(frozen=True)
class Usage:
    """The use of a folder: the library that loads it, Python that does, and notes on what it computes otherwise."""

    library: Library
    code: Sequence[str]
    notes: Sequence[str] = field(default_factory=tuple)


def write_card_text(title: str, description: str, usage: Usage, facts: CardFacts, labels: Sequence[str]) -> str:
    """Return the text of a card; ``labels`` are the classes of a classifier that the folder holds."""
    tag = "image-classification" if labels else "image-feature-extraction"
    front: dict[str, Any] = {
        # the weights are those of whoever trained them
        "license": "unknown",
        "library_name": usage.library,
        "pipeline_tag": tag,
        "tags": [usage.library, "vision", *facts.tags],
    }
    if facts.base_model is not None:
        front["base_model"] = facts.base_model
    if facts.datasets:
        front["datasets"] = list(facts.datasets)
    sections = {f"# {title}": _describe_classes(description, labels), "## Use": _describe_use(usage)}
    if facts.training:
        sections["## Training"] = "\n".join(f"- {line}" for line in facts.training)
    sections["## Licence"] = f"- model: not stated\n- data: {facts.data_license}"
    text = f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n"
    for heading, content in sections.items():
        text += f"\n{heading}\n\n{content}\n"
    return text


def _describe_classes(description: str, labels: Sequence[str]) -> str:
    if not labels:
        return description
    names = ", ".join(labels[:_FEW])
    if len(labels) > _FEW:
        names += ", ..."
    return f"{description}\n\nIts {len(labels)} classes: {names}."


def _describe_use(usage: Usage) -> str:
    lines = ["```python", *usage.code, "```"]
    for note in usage.notes:
        lines += ["", f"{note[0].upper()}{note[1:]}."]
    return "\n".join(lines)
