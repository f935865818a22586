"""The figures of the images of a source: as JSON, as a configuration, and in tables for people."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ehm.analysis.data_stats.channel_moments import ChannelMoments
from ehm.analysis.data_stats.image_facts import ImageFacts
from ehm.config.pixel_format import PixelFormat
from ehm.console import console
from ehm.data.sources.identity import UNREADABLE
from ehm.errors import DataError

__all__ = ["DataStatistics", "summarise_facts"]

_DIGITS = 6
"""Decimal places of means and deviations."""
_SMALL_DEVIATION = 0.05
"""Deviation of values in [0, 1] below which most of their range is empty."""
_SHOWN = 10
"""Groups of copies, and unreadable files, that are printed at most."""


@dataclass(frozen=True)
class DataStatistics:
    """The figures of the images of ``source``.

    ``pixels`` has the channels, the depth and the range of values; ``mean`` and ``std`` (C,) are those of values that
    are scaled from this range to [0, 1], and ``least`` and ``largest`` (C,) those of the files. ``kinds`` counts images
    by their channels and type, ``sizes`` are their (width, height). ``duplicates`` are groups of files with the same
    bytes, and ``broken`` maps files that cannot be read to the reasons. ``range_is_measured`` is true if the range was
    not known, and is that of the values of these images. ``out`` is the folder with the figures as files.
    """

    source: str
    images: int
    pixels: PixelFormat
    mean: tuple[float, ...]
    std: tuple[float, ...]
    least: tuple[float, ...]
    largest: tuple[float, ...]
    kinds: dict[str, int]
    sizes: tuple[tuple[int, int], ...]
    duplicates: tuple[tuple[str, ...], ...]
    broken: dict[str, str]
    range_is_measured: bool = False
    out: Path | None = field(default=None, compare=False)

    def _repr_html_(self) -> str:
        # imported here, because that module imports this one
        from ehm.analysis.data_stats.card import render_data_card

        return render_data_card(self)

    def to_config(self) -> dict[str, Any]:
        """Return the section ``data`` of a configuration."""
        return {"source": self.source, **self.pixels.to_json(), "mean": list(self.mean), "std": list(self.std)}

    def to_json(self) -> dict[str, Any]:
        """Return all figures as plain JSON."""
        widths, heights = np.array(self.sizes).T
        return {
            "data": self.to_config(),
            "images": self.images,
            "least": list(self.least),
            "largest": list(self.largest),
            "kinds": self.kinds,
            "width": _summarise_sides(widths),
            "height": _summarise_sides(heights),
            "duplicates": [list(group) for group in self.duplicates],
            "broken": self.broken,
        }

    def show(self) -> None:
        """Print the figures for people."""
        widths, heights = np.array(self.sizes).T
        console.print(f"{self.images:,} images read, {len(self.broken):,} that cannot be read")
        for kind, count in sorted(self.kinds.items(), key=lambda item: -item[1]):
            console.print(f"  {count:,} of {kind}")
        size_count = len(set(self.sizes))
        sizes = "all of one size" if size_count == 1 else f"{size_count:,} sizes"
        console.print(
            f"Width {widths.min()} to {widths.max()} (median {np.median(widths):g}), height {heights.min()} to "
            f"{heights.max()} (median {np.median(heights):g}), {sizes}"
        )
        columns = ("channel", "least", "largest", "mean", "deviation")
        table = Table(*columns, title="channels; mean and deviation of values from 0 to 1")
        rows = zip(self.pixels.names, self.least, self.largest, self.mean, self.std, strict=True)
        for name, least, largest, mean, std in rows:
            table.add_row(name, f"{least:g}", f"{largest:g}", f"{mean:.4f}", f"{std:.4f}")
        console.print(table)
        self._show_problems()

    def _show_problems(self) -> None:
        if self.range_is_measured:
            black, white = self.pixels.range or (0, 1)
            console.print(
                "The type of the values does not say which are black and white: mean and deviation go by the least and "
                f"the largest here, data.range=[{black:g}, {white:g}]. Set the range that you know, and measure again."
            )
        elif not self.pixels.is_rgb and max(self.std) < _SMALL_DEVIATION:
            console.print(
                f"The values fill a small part of their range, the largest being {max(self.largest):g}; data.range "
                "states another one."
            )
        copies = sum(len(group) - 1 for group in self.duplicates)
        if copies:
            console.print(f"{copies:,} files are copies of others, byte for byte:")
            for group in self.duplicates[:_SHOWN]:
                console.print(f"  {' = '.join(group)}", markup=False)
        if self.broken:
            console.print("Files that cannot be read:")
            for name, reason in list(self.broken.items())[:_SHOWN]:
                console.print(f"  {name}: {reason}", markup=False)
        if len(self.duplicates) > _SHOWN or len(self.broken) > _SHOWN:
            console.print(f"  (the first {_SHOWN}; statistics.json has all)")


def summarise_facts(source: str, facts: Sequence[ImageFacts], pixels: PixelFormat) -> DataStatistics:
    """Return the figures of all images; DataError if none can be read."""
    read = [each for each in facts if each.moments is not None]
    if not read:
        first = facts[0]
        raise DataError(
            f"data.source {source}: none of its {len(facts):,} images can be read ({first.name}: {first.problem})"
        )
    moments: ChannelMoments = reduce(add, (each.moments for each in read if each.moments is not None))
    value_range = pixels.range if not pixels.is_rgb else (0.0, 255.0)
    is_measured = False
    if value_range is None:
        value_range = Counter(each.type_range for each in read).most_common(1)[0][0]
    if value_range is None:
        value_range = (float(moments.least.min()), float(moments.largest.max()))
        pixels = replace(pixels, range=value_range)
        is_measured = True
    black, white = value_range
    mean = (moments.mean - black) / (white - black)
    # a channel that never changes would be divided by 0
    std = np.maximum(moments.deviation / (white - black), 10**-_DIGITS)
    return DataStatistics(
        source=source,
        images=len(read),
        pixels=pixels,
        mean=tuple(np.round(mean, _DIGITS).tolist()),
        std=tuple(np.round(std, _DIGITS).tolist()),
        least=tuple(moments.least.tolist()),
        largest=tuple(moments.largest.tolist()),
        kinds=dict(Counter(each.kind for each in read)),
        sizes=tuple(each.size for each in read),
        duplicates=_find_duplicates(facts),
        broken={each.name: each.problem for each in facts if each.problem is not None},
        range_is_measured=is_measured,
    )


def _find_duplicates(facts: Sequence[ImageFacts]) -> tuple[tuple[str, ...], ...]:
    """Return the names of files with the same bytes, group by group, in the order of their first ones."""
    names: dict[int, list[str]] = defaultdict(list)
    for each in facts:
        if each.key != UNREADABLE:
            names[each.key].append(each.name)
    return tuple(tuple(group) for group in names.values() if len(group) > 1)


def _summarise_sides(sides: Any) -> dict[str, float]:
    return {"least": int(sides.min()), "median": float(np.median(sides)), "largest": int(sides.max())}
