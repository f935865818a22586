"""An index of images, searched for those that are most alike: exactly, by cosine in NumPy, or by faiss."""

from __future__ import annotations

import json
import logging
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.deploy.predict import faiss_index
from ehm.deploy.predict.comparison import scale_to_length_1
from ehm.errors import DataError
from ehm.installation import build_install_command
from ehm.storage.names import escape_undecodable

__all__ = ["Index", "Neighbour"]

_LOG = logging.getLogger("ehm.serve")
_HOW = "ehm predict BUNDLE IMAGES --out DIR writes it, with a bundle that gives features"


@dataclass(frozen=True)
class Neighbour:
    """An image of the index: ``number``, ``name`` and cosine ``similarity`` (-1 to 1) to the image that was sought."""

    number: int
    name: str
    similarity: float


class Index:
    """The folder that ``ehm predict --out`` writes: ``features.npy`` (n, D) and the n images of ``predictions.jsonl``.

    ``files`` are the n images, a relative path being taken from the current folder; ``names`` the same without the
    folder that all of them lie in; ``width`` is D. Images that could not be read have no features and are left out.
    If an ``index.faiss`` lies beside them it is searched, which may miss some; without faiss all images are compared,
    and the log says so. Raises DataError for a folder that is not such an index.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        features = _read_features(folder / "features.npy")
        self.files = _read_files(folder / "predictions.jsonl")
        if len(self.files) != len(features):
            raise DataError(
                f"{folder}: features.npy has {len(features)} rows, predictions.jsonl {len(self.files)} images without "
                f"an error; {_HOW}"
            )
        # a page has little room, and the common folder tells nothing
        common = os.path.commonpath([file.parent for file in self.files])
        self.names = [escape_undecodable(os.path.relpath(file, common)) for file in self.files]
        self.width = features.shape[1]
        self._faiss: Any = None
        file = folder / faiss_index.FILE
        # faiss is an extra, and exact search needs none
        if file.is_file() and faiss_index.is_available():
            self._faiss = faiss_index.open_index(file, features.shape)
            return
        if file.is_file():
            _LOG.warning(
                "%s: faiss is not installed, searching exactly; %s installs it", file, build_install_command("index")
            )
        self._directions = scale_to_length_1(features)

    def __len__(self) -> int:
        return len(self.files)

    def search(self, features: NDArray[np.float32], top: int) -> list[Neighbour]:
        """Return the ``top`` images whose features have the largest cosine with ``features`` (D,), most alike first."""
        if self._faiss is not None:
            cosines, numbers = self._faiss.search(scale_to_length_1(features)[None], min(top, len(self)))
            neighbours = []
            for number, cosine in zip(numbers[0].tolist(), cosines[0].tolist(), strict=True):
                if number >= 0:  # faiss fills up with -1 if it found fewer
                    neighbours.append(Neighbour(number, self.names[number], cosine))
            return neighbours
        similarity = self._directions @ scale_to_length_1(features)
        best = np.argsort(-similarity, kind="stable")[:top].tolist()
        return [Neighbour(number, self.names[number], float(similarity[number])) for number in best]


def _read_features(file: Path) -> NDArray[np.float32]:
    try:
        # pickles could run code
        features: NDArray[np.float32] = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{file}: missing; {_HOW}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{file}: not an array of NumPy's: {error}") from None
    if not isinstance(features, np.ndarray) or features.ndim != 2 or features.dtype != np.float32 or not features.size:
        raise DataError(f"{file}: expected an array (images, features) of float32; {_HOW}")
    if not np.isfinite(features).all():
        raise DataError(f"{file}: holds values that are not finite")
    return features


def _read_files(file: Path) -> list[Path]:
    """Return the images that could be read, from the predictions of ``ehm predict``."""
    files = []
    number = 1
    try:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                entry = json.loads(line)
                if "error" not in entry:
                    files.append(Path(os.path.abspath(entry["image"])))
                number += 1
    except FileNotFoundError:
        raise DataError(f"{file}: missing; {_HOW}") from None
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError):
        raise DataError(f'{file}: line {number}: expected {{"image": "PATH", ...}}; {_HOW}') from None
    return files
