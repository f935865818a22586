"""Decide which kind of source a configuration means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ehm.data.decoding.channels import CHANNEL_SUFFIXES
from ehm.data.decoding.decode import SUFFIXES
from ehm.data.sources.base import FileSource, Source, Split
from ehm.data.sources.class_selection import select_classes
from ehm.data.sources.folder import open_elpv, open_folder
from ehm.data.sources.idx import FASHION_MNIST, IdxSource, holds_idx, open_fashion_mnist, open_idx
from ehm.data.sources.image_files import IMAGES, read_suffixes
from ehm.data.sources.imagenet import find_imagenet, open_imagenet
from ehm.data.sources.landmarks import holds_gldv2, open_gldv2
from ehm.data.sources.mixture import MixedSource, mix_sources
from ehm.data.sources.parts import no_validation_part
from ehm.data.sources.rows.recognition import holds_rows, names_rows
from ehm.data.sources.rows.source import RowSource
from ehm.data.sources.shard_files import holds_shards, is_pattern
from ehm.data.sources.shards import ShardSource, open_shards
from ehm.data.sources.stored import open_stored
from ehm.data.sources.table.reading import is_table
from ehm.data.sources.table.source import open_table
from ehm.data.stores.addresses import is_address
from ehm.errors import DataError

if TYPE_CHECKING:
    from ehm.config import ImageData

__all__ = ["open_source"]

_OPENERS: dict[str, Callable[[str, Split], FileSource | IdxSource | ShardSource]] = {
    "classes": partial(open_folder, layout="classes"),
    "elpv": open_elpv,
    "fashion-mnist": open_fashion_mnist,
    "folder": open_folder,
    "gldv2": open_gldv2,
    "idx": open_idx,
    "imagenet": open_imagenet,
    "parts": partial(open_folder, layout="parts"),
    "shards": open_shards,
}


def open_source(config: ImageData, split: Split = "all") -> Source:
    """Open ``config.source`` as ``config.layout`` says; ``auto`` finds out which it is.

    ``split`` is "train", "val" or "all". If the data has no validation part of its own, "train" gives all that is not
    a test part (``.split`` of the source then is "all") and "val" raises. "all" is both parts. A test part is never
    read. ``config.classes`` keeps the images of some classes. Raises DataError if nothing is there, saying what was
    looked for, and if it fits more than one layout. The sources of ``config.sources`` are read beside it as one.
    """
    if config.sources:
        return _open_several(config, split)
    pixels = config.pixels
    source: FileSource | IdxSource | RowSource | ShardSource
    with read_suffixes(SUFFIXES if pixels.is_rgb else CHANNEL_SUFFIXES):
        layout = _recognise_layout(config.source) if config.layout == "auto" else config.layout
        if layout == "table":
            source = open_table(config.source, split, config.columns, config.images)
        elif layout in ("rows", "store"):
            source = open_stored(config, split)
        else:
            source = _OPENERS[layout](config.source, split)
    if layout != "table" and not isinstance(source, RowSource):
        source = replace(source, notes=(*source.notes, *_list_unused_keys(config, layout)))
    if not isinstance(source, IdxSource):
        source = replace(source, pixels=pixels)
    elif not pixels.is_rgb:
        raise DataError(f"data.channels: {config.source} has photographs, and not {pixels.describe()}")
    return source if config.classes is None else select_classes(source, config.classes, config.source)


def _open_several(config: ImageData, split: Split) -> MixedSource:
    """Open the part ``split`` of all sources as one; a source without a validation part is in the training part."""
    opened = []
    names = []
    weights = []
    classes: dict[str, None] = {}
    for each, weight in config.each_source:
        source = open_source(each, "train" if split == "val" else split)
        # those of the training parts, in the same order for all parts
        classes |= dict.fromkeys(source.classes)
        if split == "val":
            if source.split != "train":
                continue
            source = open_source(each, "val")
        opened.append(source)
        names.append(each.source)
        weights.append(weight)
    if not opened:
        raise no_validation_part(config.source)
    has_parts = any(source.split != "all" for source in opened)
    return mix_sources(opened, names, weights, tuple(classes), split if has_parts else "all", config.pixels)


def _list_unused_keys(config: ImageData, layout: str) -> tuple[str, ...]:
    """Return a note if keys are set that are about a table, which the source is not."""
    names = []
    if config.images is not None:
        names.append("data.images")
    if config.columns != type(config.columns)():
        names.append("data.columns")
    if not names:
        return ()
    # no error: a model that was trained on a table is also measured on folders
    return (f"not used: {' and '.join(names)}, as {config.source} is no table (its layout is {layout})",)


def _recognise_layout(source: str) -> str:
    """Return the layout that ``source`` has by what only this layout has; DataError if it fits two."""
    if source in ("elpv", FASHION_MNIST):
        return source
    if is_address(source):
        return "store"
    if is_pattern(source):
        return "shards"
    if names_rows(source):
        return "rows"
    if is_table(source):
        return "table"
    root = Path(source).expanduser()
    fitting: dict[str, str] = {}
    if holds_shards(root):
        fitting["shards"] = "tar files"
    if holds_rows(root):
        fitting["rows"] = "Parquet or Arrow files"
    if holds_gldv2(root):
        fitting["gldv2"] = "a table of landmarks beside train/"
    if holds_idx(root):
        fitting["idx"] = "IDX files"
    if find_imagenet(source) is not None:
        fitting["imagenet"] = "train/ with folders named nXXXXXXXX"
    # image files beside shards may be meant instead
    if set(fitting) in ({"shards"}, {"rows"}) and IMAGES.below(root):
        fitting["folder"] = "image files"
    if len(fitting) > 1:
        found = " and ".join(f"{layout} ({why})" for layout, why in fitting.items())
        choices = " or ".join(f"data.layout={layout}" for layout in fitting)
        raise DataError(f"data.source {source}: fits {len(fitting)} layouts: {found}; choose with {choices}")
    return next(iter(fitting), "folder")
