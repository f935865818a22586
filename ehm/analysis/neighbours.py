"""Classification by nearest neighbours (k-NN) among frozen features, as in DINO (Caron et al., 2021).

Shapes: n images with labels, m images to classify, D features.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["NEIGHBOURS", "TEMPERATURE", "vote_by_neighbours", "vote_for_labels"]

NEIGHBOURS = 20
"""The number of neighbours that vote, with which DINO reports its results."""
TEMPERATURE = 0.07
"""The temperature of votes, as in DINO."""
_QUERIES_AT_ONCE = 256


def vote_by_neighbours(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    queries: NDArray[np.float32],
    classes: int,
    neighbours: int,
    temperature: float = TEMPERATURE,
) -> NDArray[np.float64]:
    """Return the votes (m, classes) of the nearest of ``features`` (n, D) for ``queries`` (m, D); rows sum to 1.

    The vote of a neighbour weighs exp(cosine / temperature), as in DINO.
    """
    votes = np.zeros((len(queries), classes))
    for rows, nearest, weight in _weigh_nearest(features, queries, neighbours, temperature):
        # not votes[...] += weight, which would add only one vote for a class that several neighbours have
        np.add.at(votes[rows], (np.arange(len(nearest))[:, None], labels[nearest]), weight)
    votes /= votes.sum(axis=1, keepdims=True)
    return votes


def vote_for_labels(
    features: NDArray[np.float32],
    targets: NDArray[np.bool_],
    queries: NDArray[np.float32],
    neighbours: int,
    temperature: float = TEMPERATURE,
) -> NDArray[np.float64]:
    """Return the share of the votes that each of several labels has: (m, C), from ``targets`` (n, C).

    Neighbours and weights are those of :func:`vote_by_neighbours`; each votes for all labels that it has.
    """
    shares = np.zeros((len(queries), targets.shape[1]))
    for rows, nearest, weight in _weigh_nearest(features, queries, neighbours, temperature):
        shares[rows] = np.einsum("mk,mkc->mc", weight / weight.sum(axis=1, keepdims=True), targets[nearest])
    return shares


def _weigh_nearest(
    features: NDArray[np.float32], queries: NDArray[np.float32], neighbours: int, temperature: float
) -> Iterator[tuple[slice, NDArray[np.int64], NDArray[np.float64]]]:
    """Yield rows of ``queries``, the numbers of the nearest of ``features``, and the weights of their votes."""
    # features of one encoder share a large constant part, which hides the angles between them
    mean = features.mean(axis=0)
    features = _normalise_rows(features - mean)
    queries = _normalise_rows(queries - mean)
    count = min(neighbours, len(features))
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        rows = slice(start, start + _QUERIES_AT_ONCE)
        cosine = queries[rows] @ features.T
        # only the nearest are needed, in any order, which is faster than sorting all
        nearest = np.argpartition(-cosine, count - 1, axis=1)[:, :count]
        # minus 1, the largest cosine: this changes no share of the votes, and exp cannot overflow
        weight = np.exp((np.take_along_axis(cosine, nearest, axis=1) - 1) / temperature, dtype=np.float64)
        yield rows, nearest, weight


def _normalise_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit
