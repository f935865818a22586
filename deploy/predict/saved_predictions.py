"""The files that predictions become in a folder: one in JSON lines, and one for each kind of array.

FOLDER/predictions.jsonl   a line for each image
       features.npy        (n, D), a row for each of the n images that were read; also patches.npy, visual_tokens.npy
       index.faiss         an index of the features, if one was asked for
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ehm.deploy.bundle.manifest import IndexKind
from ehm.deploy.predict import faiss_index
from ehm.deploy.predict.prediction import Prediction
from ehm.storage.writing import replace_file

__all__ = ["save_predictions"]

_ARRAYS = ("features", "patches", "visual_tokens")
"""The fields of a prediction that have a file of their own."""


def save_predictions(out: Path, predictions: Sequence[Prediction], index: IndexKind | None) -> None:
    """Write ``predictions.jsonl`` and the arrays beside it in place of those of an earlier call."""
    lines = []
    for prediction in predictions:
        # they have files of their own
        without_arrays = replace(prediction, features=None, patches=None, visual_tokens=None)
        lines.append(json.dumps(without_arrays.as_dict()) + "\n")
    with replace_file(out / "predictions.jsonl") as temporary:  # it gets its name last, when all files belong together
        temporary.write_text("".join(lines), encoding="utf-8")
        # an index of an earlier call would number other images
        (out / faiss_index.FILE).unlink(missing_ok=True)
        for name in _ARRAYS:
            rows = [getattr(prediction, name) for prediction in predictions]
            _save_rows(out / f"{name}.npy", [row for row in rows if row is not None])
        features = [prediction.features for prediction in predictions if prediction.features is not None]
        if index is not None and features:
            faiss_index.write_index(out, np.stack(features), index)


def _save_rows(file: Path, rows: list[NDArray[np.float32]]) -> None:
    """Write ``rows`` as one array, if there are any; rows of an earlier call belong to other images and go."""
    file.unlink(missing_ok=True)
    if rows:
        with replace_file(file) as temporary:
            np.save(temporary, np.stack(rows))
