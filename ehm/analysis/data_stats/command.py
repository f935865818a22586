"""``ehm data stats``: read every image of a source once, and report what matters before the first run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ehm.analysis.data_stats.card import THUMBNAILS_FILE
from ehm.analysis.data_stats.image_facts import ImageFacts, examine_image, guess_format
from ehm.analysis.data_stats.result import DataStatistics, summarise_facts
from ehm.analysis.data_stats.thumbnails import MOST_THUMBNAILS, draw_thumbnails
from ehm.config import ImageData, load_config
from ehm.config.pixel_format import PixelFormat
from ehm.config.section import Section
from ehm.console import console
from ehm.data import Source, open_source
from ehm.data.threads import map_in_threads
from ehm.errors import DataError
from ehm.progress_bar import track
from ehm.storage.writing import replace_file, write_json, write_text

__all__ = ["DEFAULT_OUT", "measure_data"]

DEFAULT_OUT = Path("runs/data")
_CONFIG = "statistics.yaml"


class _StatisticsConfig(Section):
    """The settings of the command: how images are read."""

    data: ImageData = ImageData()


def measure_data(source: str, *, overrides: Sequence[str] = (), out: str | Path | None = None) -> DataStatistics:
    """Measure the images of ``source``, which is anything that ``data.source`` takes, in one pass over them.

    ``overrides`` are ``key=value`` strings of the section ``data``, for example ``data.channels=7``. Channels and depth
    that are not set are those of most images. Writes ``statistics.json``, ``statistics.yaml``, a configuration for
    ``--config``, and ``thumbnails.png`` into ``out`` (``runs/data`` if left out). Raises ConfigError for a wrong key,
    DataError if there are no images or none can be read.
    """
    folder = Path(out or DEFAULT_OUT)
    # quoted by json.dumps, because a string in JSON is one in YAML too
    config = load_config(_StatisticsConfig, None, [f"data.source={json.dumps(str(source))}", *overrides])
    data = config.data
    images, pixels = _open_images(data)
    console.print(f"Measuring {len(images):,} images of {source} as {_describe(pixels)}")
    for note in images.notes:
        console.print(f"  {note}")
    facts = _examine_images(images, pixels, data.workers)
    statistics = replace(summarise_facts(str(source), facts, pixels), out=folder)
    statistics.show()
    _write_files(folder, statistics, facts)
    return statistics


def _open_images(data: ImageData) -> tuple[Source, PixelFormat]:
    """Open the images, and choose their channels and depth if ``data`` leaves them open."""
    if data.depth is not None:
        return open_source(data), data.pixels
    try:
        source = open_source(data)
    except DataError:
        if data.channels is not None:
            raise
        # arrays and DICOM files are images only if channels are asked for
        source = open_source(data.model_copy(update={"channels": 1}))
    pixels = guess_format(source, 1 if data.channels is None else data.pixels.count)
    if data.channels is not None:
        pixels = replace(pixels, channels=data.channels)
    if pixels.is_rgb:
        return source, data.pixels
    pixels = replace(pixels, range=data.range, window=bool(data.window))
    chosen = {"channels": pixels.channels, "depth": pixels.depth}
    return open_source(data.model_copy(update=chosen)), pixels


def _describe(pixels: PixelFormat) -> str:
    return "photographs" if pixels.is_rgb else pixels.describe()


def _examine_images(source: Source, pixels: PixelFormat, threads: int) -> list[ImageFacts]:
    """Return the facts of every image, in order, with a progress bar on a terminal."""
    count = len(source)
    shown = set(np.linspace(0, count - 1, min(count, MOST_THUMBNAILS)).round().astype(int).tolist())

    def examine(index: int) -> ImageFacts:
        return examine_image(source, index, pixels, index in shown)

    facts = []
    for each in track(map_in_threads(examine, range(count), threads), "images", count, transient=True):
        facts.append(each)
    return facts


def _write_files(folder: Path, statistics: DataStatistics, facts: Sequence[ImageFacts]) -> None:
    write_json(folder / "statistics.json", statistics.to_json())
    section = statistics.to_config()
    write_text(folder / _CONFIG, yaml.safe_dump({"data": section}, sort_keys=False))
    page = draw_thumbnails(statistics.source, facts, statistics.pixels)
    with replace_file(folder / THUMBNAILS_FILE) as temporary:
        page.save(temporary, format="PNG")
    console.print(f"Figures: {folder / 'statistics.json'}; thumbnails: {folder / THUMBNAILS_FILE}")
    console.print(f"To train with these: ehm train --config {folder / _CONFIG}, or beside another configuration:")
    console.print("  " + " ".join(_list_flags(section)), markup=False, soft_wrap=True)


def _list_flags(section: dict[str, Any]) -> list[str]:
    """Return the values of a section as flags ``--set``."""
    settings = []
    for key, value in section.items():
        if key != "source" and value not in (None, False):
            settings.append(f"--set 'data.{key}={json.dumps(value)}'")
    return settings
