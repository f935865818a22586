"""Indexes of many images' features by faiss, which searches without comparing with every one of them.

``index.faiss`` lies beside the ``features.npy`` that it was made of, in the same order, all brought to length 1, so
that products are cosines.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ehm.deploy.bundle.manifest import IndexKind
from ehm.deploy.predict.comparison import scale_to_length_1
from ehm.errors import BackendError, ConfigError, DataError
from ehm.installation import build_install_command
from ehm.storage.writing import replace_file

__all__ = ["FILE", "check_kind", "is_available", "open_index", "write_index"]

FILE = "index.faiss"


def is_available() -> bool:
    """Return whether faiss is installed."""
    return find_spec("faiss") is not None


def check_kind(kind: str) -> None:
    """Raise ConfigError if there is no such kind of index, BackendError if faiss is not installed to write it."""
    if kind not in get_args(IndexKind):
        raise ConfigError(f"--index {kind}: expected one of {', '.join(get_args(IndexKind))}")
    if not is_available():
        raise BackendError(f"--index: faiss is not installed; {build_install_command('index')} installs it")


def write_index(folder: Path, features: NDArray[np.float32], kind: IndexKind) -> Path:
    """Write an index of ``features`` (n, D) into ``folder``, complete or not at all; return its path.

    ``flat`` compares with every image. ``hnsw`` walks a graph of near ones (Malkov and Yashunin, 2018; 32 links, 64
    candidates); ``ivf`` looks at the nearest tenth of about 4 sqrt(n) cells of k-means. Both may miss some.
    """
    faiss: Any = import_module("faiss")
    count, width = features.shape
    directions = scale_to_length_1(features)
    # inner products of these are cosines
    index: Any = faiss.IndexFlatIP(width)
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 100
        index.hnsw.efSearch = 64
    elif kind == "ivf":
        cells = max(1, min(round(4 * count**0.5), count // 39))  # k-means wants 39 images a cell
        index = faiss.IndexIVFFlat(index, width, cells, faiss.METRIC_INNER_PRODUCT)
        # more cells find more of the true neighbours, and take longer
        index.nprobe = max(1, cells // 10)
        index.train(directions)
    index.add(directions)
    with replace_file(folder / FILE) as temporary:
        faiss.write_index(index, str(temporary))
    return folder / FILE


def open_index(file: Path, shape: tuple[int, int]) -> Any:
    """Open the index of features of ``shape`` (n, D); its ``search(queries (q, D), top)`` gives cosines and numbers.

    Raises DataError if the file is no index, or one of other features.
    """
    faiss: Any = import_module("faiss")
    try:
        index = faiss.read_index(str(file))
    except RuntimeError as error:
        raise DataError(f"{file}: not an index of faiss: {str(error).strip().splitlines()[-1][:200]}") from None
    if (index.ntotal, index.d) != shape:
        raise DataError(
            f"{file}: has {index.ntotal} images of {index.d} features, features.npy {shape[0]} of {shape[1]}; "
            "ehm predict --out DIR --index writes both"
        )
    return index
