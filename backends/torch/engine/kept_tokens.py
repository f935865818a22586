"""Keep the tokens of a frozen encoder in a memory-mapped file, so that each image passes through it once.

An image is known by its pixels: whatever was done to it before, and however many questions are about it, it gets the
tokens that the encoder would give. The file is a temporary one, which vanishes with the process that writes it, even if
that is killed: no run can take what another one began to write for its own.

Shapes: B images of H x W pixels, L tokens of D features.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ehm.backends.torch.engine.transfers import upload_array
from ehm.console import console

__all__ = ["KeptTokens", "find_room"]

_MOST_BYTES = 4_000_000_000
"""Bytes that the files of all processes of a machine may take together."""
_DISK_SHARE = 4
"""The files may take one part in so many of what is free on the disk."""


class KeptTokens:
    """The tokens that ``encode`` gives, kept for up to ``images`` different images in a file in ``folder``.

    ``example`` (1, L, D) are the tokens of any image. Raises OSError if the file cannot be made.
    """

    def __init__(
        self, encode: Callable[[NDArray[np.uint8]], Tensor], example: Tensor, images: int, folder: Path
    ) -> None:
        self._encode = encode
        self._shape = example.shape[1:]
        self._dtype = example.dtype
        self._device = example.device
        self._images = images
        self._row_of: dict[bytes, int] = {}
        row_bytes = example.nbytes
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open until close()
        # all of it now, because what is mapped cannot grow; the disk gives a page only when it is written
        self._file.truncate(images * row_bytes)
        self._rows: NDArray[np.uint8] = np.asarray(np.memmap(self._file, np.uint8, "r", shape=(images, row_bytes)))

    def encode(self, images: NDArray[np.uint8]) -> Tensor:
        """Return the tokens of images, and encode those only that are new: (B, H, W, 3) -> (B, L, D)."""
        keys = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]
        new: dict[bytes, int] = {}
        for place, key in enumerate(keys):
            if key not in self._row_of:
                new.setdefault(key, place)
        tokens = torch.empty(len(images), *self._shape, dtype=self._dtype, device=self._device)
        known_places = [place for place, key in enumerate(keys) if key not in new]
        if known_places:
            tokens[known_places] = self._read([self._row_of[keys[place]] for place in known_places])
        if new:
            encoded = self._encode(images[list(new.values())])
            numbers = {key: number for number, key in enumerate(new)}
            new_places = [place for place, key in enumerate(keys) if key in new]
            tokens[new_places] = encoded[[numbers[keys[place]] for place in new_places]]
            self._keep(list(new), encoded)
        return tokens

    def close(self) -> None:
        """Give the disk its room back; nothing is kept from now on."""
        self._images = 0
        self._row_of.clear()
        self._rows = np.empty((0, 0), np.uint8)  # what is mapped would stay on the disk
        with suppress(OSError):  # what was not written on a full disk is tried once more
            self._file.close()

    def _read(self, rows: Sequence[int]) -> Tensor:
        kept = self._rows[rows]
        return upload_array(kept, self._device).view(self._dtype).view(len(rows), *self._shape)

    def _keep(self, keys: Sequence[bytes], tokens: Tensor) -> None:
        first = len(self._row_of)
        keys = keys[: self._images - first]
        if not keys:
            return
        data = tokens[: len(keys)].flatten(1).contiguous().cpu().view(torch.uint8).numpy()
        # written and not put into the mapped pages, where a full disk would end the process without a word
        try:
            self._file.seek(first * data.shape[1])
            self._file.write(data.data)
            self._file.flush()
        except OSError as error:
            console.print(f"cache_features: {error.strerror or error}; from now on each image is encoded again")
            self.close()
            return
        # only now, so that nothing is read that was written in part
        for row, key in enumerate(keys, start=first):
            self._row_of[key] = row


def find_room(folder: Path) -> int:
    """Return the bytes that files in ``folder`` may take, which need not exist yet."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    return min(_MOST_BYTES, shutil.disk_usage(existing).free // _DISK_SHARE)
