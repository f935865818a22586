"""The table of all layouts, and the conversion of a file's arrays to timm's names, which are ours."""

from __future__ import annotations

from ehm.models.published.authors import AUTHORS, PLAIN_NAMES, UNNAMED
from ehm.models.published.facts import Published
from ehm.models.published.layout import Layout
from ehm.models.published.prefixes import count_left_aside, drop_computed, find_prefix, split_at_prefix
from ehm.models.published.towers import TOWERS
from ehm.models.published.transformers_names import TRANSFORMERS
from ehm.storage.arrays import Arrays

__all__ = ["LAYOUTS", "UNNAMED", "convert_to_timm"]

LAYOUTS: tuple[Layout, ...] = (*TRANSFORMERS, *TOWERS, *AUTHORS)
"""All layouts, in the order in which they are tried; :data:`PLAIN_NAMES` is for what none of them recognises."""


def convert_to_timm(arrays: Arrays) -> Published:
    """Return the encoder in ``arrays``, and the heads and decoders that ehm knows, under timm's names.

    Buffers that a model computes itself are left out. Names of no layout are taken as timm's; whether an encoder is
    complete shows when its sizes are read.
    """
    prefix = find_prefix(arrays)
    encoder, beside = split_at_prefix(arrays, prefix)
    layout = _find_layout(encoder, beside)
    renamed, aside = layout.rename(drop_computed(encoder))
    heads, outside = layout.rename_beside(drop_computed(beside))
    converted = renamed | heads
    for step in layout.steps:
        converted = step(converted)
    if "reg_token" in converted and not converted["reg_token"].size:
        # transformers keeps the registers of an encoder that has none
        del converted["reg_token"]
    notes: tuple[str, ...] = ()
    if aside or outside:
        notes = (f"left aside, as no part of the encoder: {count_left_aside(aside + outside)}",)
    return Published(converted, layout.family, layout.facts, notes)


def _find_layout(encoder: Arrays, beside: Arrays) -> Layout:
    for layout in LAYOUTS:
        if layout.recognise(encoder, beside):
            return layout
    return PLAIN_NAMES
