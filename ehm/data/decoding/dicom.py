"""DICOM files as images, by pydicom: values in the modality's own units, such as Hounsfield's."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from ehm.config.pixel_format import MOST_CHANNELS
from ehm.data.decoding.limits import refuse_bomb
from ehm.errors import BrokenImage, DataError
from ehm.installation import build_install_command

__all__ = ["Dicom", "count_dicom_channels", "is_dicom", "open_dicom", "read_dicom", "read_dicom_size"]

_MAGIC = b"DICM"
_MAGIC_AT = 128
"""Bytes before these four letters, which may be anything (DICOM PS3.10, 7.1)."""
_HEAD_GROUP = 2
"""The group of the tags that say how all others are written (DICOM PS3.10, 7.1)."""
_MOST_UNPACKED = 1 << 30
"""Bytes that a deflated file may unpack to: more than an image of Pillow's limit has in 64 bits."""
_PIECE = 1 << 20
"""Bytes that are unpacked at a time, to count them."""


@dataclass(frozen=True)
class Dicom:
    """The pixels (H, W, C) of a DICOM file in the modality's own units, whose stored values have ``bits``.

    ``full_range`` are what the lowest and the highest stored value mean, ``window`` are the values that the file itself
    wants to be black and white, None if it does not say; ``white_is_zero`` exchanges them.
    """

    values: NDArray[Any]
    bits: int
    full_range: tuple[float, float]
    window: tuple[float, float] | None
    white_is_zero: bool


def is_dicom(file: IO[bytes]) -> bool:
    """Return whether a file begins as DICOM files do; it is left at its beginning."""
    file.seek(_MAGIC_AT)
    magic = file.read(len(_MAGIC))
    file.seek(0)
    return magic == _MAGIC


def open_dicom(file: IO[bytes], name: str) -> Any:
    """Return pydicom's data set of a DICOM file, whose pixels are not unpacked yet.

    Raises BrokenImage, which begins with ``name``, if it has colours in several frames, a palette, or no pixels;
    DataError if pydicom is not installed.
    """
    dataset = _read_dataset(file, name)
    if "PixelData" not in dataset:
        raise BrokenImage(f"{name}: is a DICOM file without pixels")
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        raise BrokenImage(f"{name}: is a DICOM file whose values are the numbers of colours, which are not read")
    frames = _count_frames(dataset)
    if int(dataset.SamplesPerPixel) > 1 and frames > 1:
        raise BrokenImage(f"{name}: has {frames} frames in colours; one frame is read, or several of one value")
    refuse_bomb(int(dataset.Columns), int(dataset.Rows))
    return dataset


def count_dicom_channels(dataset: Any) -> int:
    """Return how many channels the pixels of :func:`open_dicom`'s data set have: its colours, or its frames."""
    samples = int(dataset.SamplesPerPixel)
    return samples if samples > 1 else _count_frames(dataset)


def read_dicom(dataset: Any, name: str) -> Dicom:
    """Unpack the pixels of :func:`open_dicom`'s data set; raises BrokenImage, which begins with ``name``."""
    from pydicom.pixels.processing import apply_rescale

    channels = count_dicom_channels(dataset)
    if channels > MOST_CHANNELS:
        raise BrokenImage(f"{name}: has {channels} frames; up to {MOST_CHANNELS} are read, each as a channel")
    stored = dataset.pixel_array
    bits = int(dataset.BitsStored)
    if stored.ndim == 2:
        stored = stored[:, :, None]
    elif int(dataset.SamplesPerPixel) == 1:
        stored = stored.transpose(1, 2, 0)
    lowest = 0
    highest = 2**bits - 1
    if int(dataset.PixelRepresentation):
        lowest = -(2 ** (bits - 1))
        highest = -lowest - 1
    black, white = apply_rescale(np.array([lowest, highest]), dataset).tolist()
    return Dicom(
        values=apply_rescale(stored, dataset),
        bits=bits,
        full_range=(min(black, white), max(black, white)),
        window=_read_window(dataset),
        white_is_zero=dataset.PhotometricInterpretation == "MONOCHROME1",
    )


def read_dicom_size(file: IO[bytes], name: str) -> tuple[int, int]:
    """Return the width and height of a DICOM file's pixels without reading them; errors are as in `open_dicom`."""
    dataset = _read_dataset(file, name, stop_before_pixels=True)
    return int(dataset.Columns), int(dataset.Rows)


def _read_dataset(file: IO[bytes], name: str, stop_before_pixels: bool = False) -> Any:
    try:
        import pydicom
    except ImportError:
        raise DataError(f"{name}: reading DICOM needs pydicom; {build_install_command('dicom')}") from None
    file.seek(0)
    _refuse_deflated_bomb(file, name)
    file.seek(0)
    return pydicom.dcmread(file, stop_before_pixels=stop_before_pixels)


def _refuse_deflated_bomb(file: IO[bytes], name: str) -> None:
    """Raise BrokenImage for a deflated file that unpacks to more than is sensible: pydicom would unpack all of it."""
    from pydicom.filereader import read_dataset, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    stream = cast(BinaryIO, file)
    read_preamble(stream, force=False)
    head = read_dataset(stream, False, True, stop_when=lambda tag, *_: tag.group != _HEAD_GROUP)
    if head.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    packed = file.read()
    size = 0
    while packed:
        size += len(unpacker.decompress(packed, _PIECE))
        packed = unpacker.unconsumed_tail
        if size > _MOST_UNPACKED:
            raise BrokenImage(f"{name}: a deflated DICOM file that unpacks to more than {_MOST_UNPACKED >> 20} MiB")


def _count_frames(dataset: Any) -> int:
    return int(dataset.get("NumberOfFrames") or 1)


def _read_window(dataset: Any) -> tuple[float, float] | None:
    """Return the lowest and the highest value of the first window of a file.

    DICOM's linear function (PS3.3, C.11.2.1.2.1) is black up to centre - 0.5 - (width - 1) / 2.
    """
    centre = dataset.get("WindowCenter")
    width = dataset.get("WindowWidth")
    if centre is None or width is None:
        return None
    first_centre = float(np.atleast_1d(centre)[0])
    first_width = float(np.atleast_1d(width)[0])
    half = (first_width - 1) / 2
    if half <= 0:
        return None
    return first_centre - 0.5 - half, first_centre - 0.5 + half
