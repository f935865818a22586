"""Sources in the IDX files of MNIST: the images of a part in one file, their labels in another, each plain or gzip.

    train-images-idx3-ubyte   train-labels-idx1-ubyte   the training part
    t10k-images-idx3-ubyte    t10k-labels-idx1-ubyte    the part that is measured on, if it is there

A file is a header of big-endian numbers and then bytes: 00 00 08 (for bytes) and the number of dimensions, 4 bytes for
the length of each dimension, and the values row by row (LeCun et al., http://yann.lecun.com/exdb/mnist).
n is the number of images, H x W are their pixels.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.data.sources.base import Names, Split
from ehm.data.sources.inventory import describe_layout
from ehm.data.sources.parts import Part
from ehm.errors import DataError

__all__ = ["FASHION_MNIST", "FASHION_MNIST_CLASSES", "IdxSource", "holds_idx", "open_fashion_mnist", "open_idx"]

FASHION_MNIST = "fashion-mnist"
"""The value of data.source for the files of Debian's package."""
FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""The names of the labels 0 to 9 (Xiao et al., 2017)."""
_DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_DEBIAN_PACKAGE = "dataset-fashion-mnist"

_FILE_PREFIXES: Mapping[Part, str] = {"train": "train", "val": "t10k"}
_IMAGES = "images-idx3-ubyte"
_LABELS = "labels-idx1-ubyte"
_GZIP_START = b"\x1f\x8b"
_UBYTE = 8
"""The code of bytes in the third byte of a file."""


@dataclass(frozen=True)
class IdxSource:
    """Grey images (n, H, W) that are held in memory, with a name below ``root`` for each, as if files were folders."""

    root: Path
    images: NDArray[np.uint8]
    members: Names
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    split: Split
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_bytes(self) -> int:
        """The number of bytes of each image."""
        height, width = self.images.shape[1:]
        return height * width

    def load(self, index: int) -> Image.Image:
        """Return the image in RGB; all three channels are its grey values."""
        return Image.fromarray(self.images[index]).convert("RGB")

    def name(self, index: int) -> str:
        """Return the path of the file that the image is in, and behind it the image's part and number."""
        return str(self.root / self.members[index])

    def select(self, indices: NDArray[np.int64], labels: NDArray[np.int64], classes: tuple[str, ...]) -> IdxSource:
        """Return the images at ``indices`` (n,) alone, with ``labels`` (n,) that number ``classes``."""
        members = Names(self.members[index] for index in indices.tolist())
        return replace(self, images=self.images[indices], members=members, labels=labels, classes=classes)


def open_fashion_mnist(source: str, split: Split) -> IdxSource:
    """Open Fashion-MNIST: ``source`` is "fashion-mnist" for the files of Debian's package, or a folder that holds them.

    Raises DataError if they are not there, and as :func:`open_idx` does.
    """
    if source != FASHION_MNIST:
        return _open_parts(source, Path(source).expanduser(), split, "Fashion-MNIST", FASHION_MNIST_CLASSES)
    if not holds_idx(_DEBIAN_FOLDER):
        raise DataError(
            f"data.source {FASHION_MNIST}: its images are not in {_DEBIAN_FOLDER}; apt-get install {_DEBIAN_PACKAGE} "
            f"(Debian, Ubuntu), or set data.layout={FASHION_MNIST} and data.source to the folder that holds them"
        )
    return _open_parts(source, _DEBIAN_FOLDER, split, "Fashion-MNIST", FASHION_MNIST_CLASSES)


def open_idx(source: str, split: Split) -> IdxSource:
    """Open the IDX files in a folder, for example those of MNIST or KMNIST; classes are called by their numbers.

    Raises DataError that names the file if one is missing, damaged or no IDX file, or if the two files of a part do not
    go together.
    """
    return _open_parts(source, Path(source).expanduser(), split, "IDX files", None)


def holds_idx(root: Path) -> bool:
    """Return whether a folder holds the training images of such files."""
    return _find_file(root, "train", _IMAGES) is not None


def _open_parts(source: str, root: Path, split: Split, kind: str, classes: tuple[str, ...] | None) -> IdxSource:
    """Open the parts of ``split``; ``classes`` None counts the classes by the labels of all parts."""
    present: list[Part] = ["train"]
    if _find_file(root, "val", _IMAGES) is not None:
        present.append("val")
    elif split == "val":
        raise DataError(
            f"data.source {source}: has no validation part of its own (no {_FILE_PREFIXES['val']}-{_IMAGES} in {root})"
        )
    else:
        split = "all"
    labels_of: dict[Part, NDArray[np.uint8]] = {}
    for part in present:
        labels_of[part] = _read_idx(_require_file(source, root, part, _LABELS), dimensions=1)
    if classes is None:
        # of all parts, because they have the same classes
        largest_label = max(int(labels.max(initial=0)) for labels in labels_of.values())
        classes = tuple(map(str, range(largest_label + 1)))

    images: list[NDArray[np.uint8]] = []
    labels: list[NDArray[np.uint8]] = []
    members: list[str] = []
    for part in present:
        if split not in ("all", part):
            continue
        file = _require_file(source, root, part, _IMAGES)
        found = _read_idx(file, dimensions=3)
        _check_part(file, found, _require_file(source, root, part, _LABELS), labels_of[part], classes)
        if images and found.shape[1:] != images[0].shape[1:]:
            raise DataError(
                f"{file}: its images have {_describe_size(found)} pixels, others {_describe_size(images[0])}"
            )
        images.append(found)
        labels.append(labels_of[part])
        members += [f"{file.name}/{_FILE_PREFIXES[part]}-{number:05d}" for number in range(len(found))]
    return IdxSource(
        root,
        # one part is not copied
        images[0] if len(images) == 1 else np.concatenate(images),
        Names(members),
        np.concatenate(labels).astype(np.int64),
        classes,
        split,
        notes=tuple(_describe(kind, labels_of, len(classes))),
    )


def _check_part(
    images_file: Path,
    images: NDArray[np.uint8],
    labels_file: Path,
    labels: NDArray[np.uint8],
    classes: Sequence[str],
) -> None:
    """Raise DataError if a part has no images, if a label is missing, or if it is the number of no class."""
    if not images.size:
        raise DataError(f"{images_file}: holds no images ({len(images):,} of {_describe_size(images)} pixels)")
    if len(images) != len(labels):
        raise DataError(
            f"{labels_file}: has {len(labels):,} labels for the {len(images):,} images of {images_file.name}"
        )
    if labels.max() >= len(classes):
        raise DataError(
            f"{labels_file}: has the label {labels.max()}; there are {len(classes)} classes, numbered from 0"
        )


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read the values of an IDX file of bytes with that number of ``dimensions``; DataError says what is wrong."""
    data = _read_bytes(path)
    start = bytes([0, 0, _UBYTE, dimensions])
    if not data.startswith(start):
        raise DataError(
            f"{path}: begins with {data[:4].hex(' ') or 'nothing'} instead of {start.hex(' ')}, so it is no IDX file "
            f"of bytes in {dimensions} dimension{'s' * (dimensions > 1)}"
        )
    header_bytes = len(start) + 4 * dimensions
    if len(data) < header_bytes:
        raise DataError(f"{path}: ends within its header")
    shape = np.frombuffer(data, ">u4", dimensions, offset=len(start)).tolist()
    expected = math.prod(shape)
    found = len(data) - header_bytes
    if found != expected:
        sizes = " x ".join(map(str, shape))
        raise DataError(f"{path}: holds {found:,} bytes of values instead of {expected:,} ({sizes}, says its header)")
    return np.frombuffer(data, np.uint8, offset=header_bytes).reshape(shape)


def _read_bytes(path: Path) -> bytes:
    """Read a file, and decompress it if it is gzip, whatever its name."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if not data.startswith(_GZIP_START):
        return data
    try:
        return gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise DataError(f"{path}: cannot be decompressed; it is damaged or was not copied completely") from None


def _find_file(root: Path, part: Part, content: str) -> Path | None:
    """Return the file of a part's images or labels, plain or gzip; None if there is none."""
    name = f"{_FILE_PREFIXES[part]}-{content}"
    for file in (root / name, root / f"{name}.gz"):
        if file.is_file():
            return file
    return None


def _require_file(source: str, root: Path, part: Part, content: str) -> Path:
    """Return the file of a part's images or labels; DataError if there is none."""
    file = _find_file(root, part, content)
    if file is None:
        name = f"{_FILE_PREFIXES[part]}-{content}"
        raise DataError(f"data.source {source}: no {name} or {name}.gz in {root}")
    return file


def _describe(kind: str, labels_of: Mapping[Part, NDArray[np.uint8]], classes: int) -> list[str]:
    """Return lines with what was recognised, and how many images each part has if there are two."""
    if len(labels_of) == 1:
        return [describe_layout(kind, (), classes)]
    counts = {_FILE_PREFIXES[part]: len(labels) for part, labels in labels_of.items()}
    each = ", ".join(f"{count:,} in {name}" for name, count in counts.items())
    return [describe_layout(kind, list(counts), classes), f"images: {each}, which is measured on"]


def _describe_size(images: NDArray[np.uint8]) -> str:
    """Return the size of images (n, H, W) as "H x W"."""
    height, width = images.shape[1:]
    return f"{height} x {width}"
