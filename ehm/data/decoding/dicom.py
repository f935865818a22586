"""DICOM files as images, by pydicom: values in the modality's own units, such as Hounsfield's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.errors import BrokenImage, DataError
from ehm.installation import build_install_command

__all__ = ["Dicom", "is_dicom", "read_dicom", "read_dicom_size"]

_MAGIC = b"DICM"
_MAGIC_AT = 128


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


def read_dicom(file: IO[bytes], name: str) -> Dicom:
    """Read the pixels of a DICOM file: its colours, or its frames, are the channels.

    Raises BrokenImage, which begins with ``name``, if it has colours in several frames, a palette, or no pixels;
    DataError if pydicom is not installed.
    """
    dataset = _read_dataset(file, name)
    from pydicom.pixels.processing import apply_rescale

    if "PixelData" not in dataset:
        raise BrokenImage(f"{name}: is a DICOM file without pixels")
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        raise BrokenImage(f"{name}: is a DICOM file whose values are the numbers of colours, which are not read")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and dataset.Rows * dataset.Columns > limit:
        raise Image.DecompressionBombError
    stored = dataset.pixel_array
    bits = int(dataset.BitsStored)
    if int(dataset.SamplesPerPixel) > 1:
        if stored.ndim != 3:
            raise BrokenImage(
                f"{name}: has {len(stored)} frames in colours; one frame is read, or several of one value"
            )
    elif stored.ndim == 2:
        stored = stored[:, :, None]
    else:
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
    """Return the width and height of a DICOM file's pixels without reading them; errors are as in `read_dicom`."""
    dataset = _read_dataset(file, name, stop_before_pixels=True)
    return int(dataset.Columns), int(dataset.Rows)


def _read_dataset(file: IO[bytes], name: str, stop_before_pixels: bool = False) -> Any:
    try:
        import pydicom
    except ImportError:
        raise DataError(f"{name}: reading DICOM needs pydicom; {build_install_command('dicom')}") from None
    file.seek(0)
    return pydicom.dcmread(file, stop_before_pixels=stop_before_pixels)


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
