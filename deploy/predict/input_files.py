"""The image files that ``ehm predict`` is given, alone and in folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ehm.config.pixel_format import RGB_BYTES, PixelFormat
from ehm.data.decoding.channels import CHANNEL_SUFFIXES
from ehm.data.decoding.decode import SUFFIXES
from ehm.data.sources.image_files import list_image_files, read_suffixes
from ehm.data.stores.addresses import is_address
from ehm.errors import ConfigError, DataError

__all__ = ["find_images"]


def find_images(images: str | Path | Sequence[str | Path], pixels: PixelFormat = RGB_BYTES) -> list[Path]:
    """Return files as they were given, and the images below each folder in the order of their names.

    Which files of a folder are images depends on the ``pixels`` of the model. As in training, hidden files and folders
    are passed over, and links are followed. Raises ConfigError for an address, DataError for a folder without images.
    """
    suffixes = SUFFIXES if pixels.is_rgb else CHANNEL_SUFFIXES
    paths = [images] if isinstance(images, str | Path) else images
    files: list[Path] = []
    for name in map(str, paths):
        if is_address(name):
            raise ConfigError(
                f"{name}: is the address of a store, whose images are predicted into Parquet files: "
                f"ehm predict {name} --bundle DIR --out FOLDER"
            )
    for path in map(Path, paths):
        if not os.path.isdir(path):  # which raises nothing for a name that is too long
            files.append(path)
            continue
        with read_suffixes(suffixes):
            # in the order of names, so that rows of features have the same order on every machine
            found = [path / file for file in list_image_files(path)]
        if not found:
            raise DataError(f"{path}: no images below this folder; known are {', '.join(sorted(suffixes))}")
        files += found
    return files
