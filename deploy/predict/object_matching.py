"""Objects that two networks both find in an image: of the same class, in boxes that cover each other.

Shapes: K objects of one network, L of the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.deploy.predict.comparison import Comparison

__all__ = ["compare_objects"]

_LEAST_OVERLAP = 0.9
"""Intersection over union of two boxes from which on they are of the same object."""
_COMPARED = ("boxes", "scores", "masks")

Objects = Mapping[str, NDArray[Any]]
"""Outputs of a detector for one image, a row for each object."""


def compare_objects(expected: Objects, found: Objects, threshold: float) -> Comparison:
    """Compare the objects of a score above ``threshold`` that two networks find in one image.

    The agreement is the share of objects that both find, of the more that one of them finds. The cosine is the smallest
    between boxes, scores and masks of these; it is 0 if there are none, and 1 if neither network finds any.
    """
    ours = _keep_above(expected, threshold)
    theirs = _keep_above(found, threshold)
    most = max(len(ours["scores"]), len(theirs["scores"]))
    if most == 0:
        return Comparison(np.ones(1), np.ones(1))
    pairs = _match(ours, theirs)
    agreement = np.array([len(pairs) / most])
    if not pairs:
        return Comparison(np.zeros(1), agreement)
    own_rows, other_rows = (list(rows) for rows in zip(*pairs, strict=True))
    cosines = []
    for name in _COMPARED:
        if name in ours and name in theirs:
            x = ours[name][own_rows].ravel().astype(np.float64)
            y = theirs[name][other_rows].ravel().astype(np.float64)
            cosines.append(x @ y / max(float(np.linalg.norm(x) * np.linalg.norm(y)), np.finfo(np.float64).tiny))
    return Comparison(np.array([min(cosines)]), agreement)


def _keep_above(objects: Objects, threshold: float) -> Objects:
    """Return the objects of a score above ``threshold``, the likeliest first."""
    rows = np.flatnonzero(objects["scores"] > threshold)
    rows = rows[np.argsort(-objects["scores"][rows], kind="stable")]
    return {name: values[rows] for name, values in objects.items()}


def _match(ours: Objects, theirs: Objects) -> list[tuple[int, int]]:
    """Return pairs of rows that are the same object; each is in one pair, and the likeliest choose first."""
    overlaps = _measure_overlaps(ours["boxes"], theirs["boxes"])
    overlaps[ours["labels"][:, np.newaxis] != theirs["labels"]] = 0
    pairs = []
    for row, shares in enumerate(overlaps):
        if shares.size and shares.max() >= _LEAST_OVERLAP:
            best = int(shares.argmax())
            pairs.append((row, best))
            overlaps[:, best] = 0  # it is taken
    return pairs


def _measure_overlaps(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return intersection over union (K, L) of boxes (K, 4) and (L, 4): left, top, right and bottom."""
    one = a.astype(np.float64)[:, np.newaxis]
    two = b.astype(np.float64)[np.newaxis]
    sides = np.minimum(one[..., 2:], two[..., 2:]) - np.maximum(one[..., :2], two[..., :2])
    shared = sides.clip(0).prod(axis=-1)
    areas = (one[..., 2:] - one[..., :2]).prod(axis=-1) + (two[..., 2:] - two[..., :2]).prod(axis=-1)
    shares: NDArray[np.float64] = shared / np.maximum(areas - shared, np.finfo(np.float64).tiny)
    return shares
