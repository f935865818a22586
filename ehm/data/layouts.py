"""Which kind of source a configuration means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ehm.data.folder import elpv, find_imagenet, folder, imagenet
from ehm.data.landmarks import gldv2, holds_gldv2
from ehm.data.shards import holds_shards, is_pattern, shards
from ehm.data.source import Source, Split

if TYPE_CHECKING:
    from ehm.config import ImageData

__all__ = ["open_source"]

_OPENERS: dict[str, Callable[[str, Split], Source]] = {
    "elpv": elpv,
    "folder": folder,
    "gldv2": gldv2,
    "imagenet": imagenet,
    "shards": shards,
}


def open_source(config: ImageData, split: Split = "all") -> Source:
    """Open ``config.source`` as ``config.layout`` says; ``auto`` finds out which it is.

    ``split`` is "train", "val" or "all". Where the data has no parts of its own, "train" gives all of it (``.split`` of
    the source then is "all") and "val" raises. Raises DataError where nothing is there, saying what was looked for.
    """
    layout = _detect(config.source) if config.layout == "auto" else config.layout
    return _OPENERS[layout](config.source, split)


def _detect(source: str) -> str:
    if source == "elpv":
        return "elpv"
    root = Path(source).expanduser()
    if is_pattern(source) or holds_shards(root):
        return "shards"
    if holds_gldv2(root):
        return "gldv2"
    return "imagenet" if find_imagenet(root) else "folder"
