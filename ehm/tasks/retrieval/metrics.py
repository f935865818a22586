"""How good is a ranking? Mean average precision as revisited Oxford and Paris count it (Radenovic et al., 2018).

Shapes: q queries, m images of the database, D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from ehm.console import console
from ehm.tasks.retrieval.benchmarks import Answers

__all__ = ["KAPPAS", "Protocol", "RetrievalReport", "average_precision", "compare", "ranks"]

KAPPAS = (1, 5, 10)
_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Protocol:
    """Figures in [0, 1] of the ``queries`` that have anything to find, of all of them.

    ``map`` is the mean average precision, ``precision[i]`` the mean precision among the first ``KAPPAS[i]``, or as many
    as it takes to find all. Both are NaN, null in JSON, where no query has anything to find.
    """

    queries: int
    map: float
    precision: tuple[float, ...]


@dataclass(frozen=True)
class RetrievalReport:
    """What a measurement says: ``protocols`` by name, ``images`` in the database, ``descriptor`` features.

    Revisited benchmarks have ``medium`` (easy and hard images are to be found), ``hard`` (hard ones, easy ones are
    junk) and ``easy``; others have ``all``.
    """

    protocols: dict[str, Protocol]
    images: int
    descriptor: int

    @property
    def figures(self) -> dict[str, float | None]:
        """Those for the whole."""
        found: dict[str, float | None] = {}
        for name, protocol in self.protocols.items():
            ending = "" if name == "all" else f"_{name}"
            found[f"map{ending}"] = _known(protocol.map)
        for name, protocol in self.protocols.items():
            ending = "" if name == "all" else f"_{name}"
            found |= {f"mp{k}{ending}": _known(p) for k, p in zip(KAPPAS, protocol.precision, strict=True)}
        return found

    @property
    def score(self) -> float:
        """Mean average precision, of Medium where there is that."""
        return next(value for value in [*self.figures.values(), 0.0] if value is not None)

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``metrics.json``."""
        return {
            "images": self.images,
            "descriptor": self.descriptor,
            "kappas": list(KAPPAS),
            "protocols": {
                name: asdict(protocol)
                | {"map": _known(protocol.map), "precision": [_known(share) for share in protocol.precision]}
                for name, protocol in self.protocols.items()
            },
        }

    def show(self) -> None:
        """Print a row a protocol."""
        table = Table("protocol", "queries", "mAP", *(f"mP@{k}" for k in KAPPAS))
        for name, protocol in self.protocols.items():
            shares = (f"{share:.1%}" for share in (protocol.map, *protocol.precision))
            table.add_row(name, f"{protocol.queries:,}", *shares)
        console.print(f"{self.images:,} images in the database, descriptors of {self.descriptor} features")
        console.print(table)


def compare(
    queries: NDArray[np.float32], database: NDArray[np.float32], answers: Sequence[Answers], revisited: bool
) -> RetrievalReport:
    """Rank ``database`` (m, D) for each of ``queries`` (q, D) by their product, and count what ``answers`` say."""
    wanted = {"all": lambda a: (a.easy, a.junk)}
    if revisited:
        wanted = {
            "medium": lambda a: (np.concatenate([a.easy, a.hard]), a.junk),
            "hard": lambda a: (a.hard, np.concatenate([a.junk, a.easy])),
            "easy": lambda a: (a.easy, np.concatenate([a.junk, a.hard])),
        }
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in wanted}
    for order, answer in zip(_orders(queries, database), answers, strict=True):
        for name, choose in wanted.items():
            positive, junk = choose(answer)
            if len(positive):
                at = ranks(order, positive, junk)
                found[name].append((average_precision(at), *(_precision(at, k) for k in KAPPAS)))
    protocols = {}
    for name, rows in found.items():
        means = np.array(rows).mean(axis=0).tolist() if rows else [float("nan")] * (1 + len(KAPPAS))
        protocols[name] = Protocol(len(rows), means[0], tuple(means[1:]))
    return RetrievalReport(protocols, len(database), queries.shape[1])


def ranks(order: NDArray[np.int64], positive: NDArray[np.int64], junk: NDArray[np.int64] = _NONE) -> NDArray[np.int64]:
    """Ranks, from 0 and rising, of ``positive`` images in ``order`` (m,), from which ``junk`` has been taken out."""
    kept = order[~np.isin(order, junk)]
    return np.flatnonzero(np.isin(kept, positive))


def average_precision(at: NDArray[np.int64]) -> float:
    """Area under precision over recall by trapezoids, of all positives' ranks ``at`` (n,), from 0 and rising.

    As the published ``compute_ap``: between the n-th positive and the one before, precision goes from that right before
    it to that with it. scikit-learn's ``average_precision_score`` takes the latter alone, and so gives less.
    """
    found = np.arange(len(at))
    before = np.where(at == 0, 1.0, found / np.maximum(at, 1))
    return float(np.mean((before + (found + 1) / (at + 1)) / 2))


def _precision(at: NDArray[np.int64], k: int) -> float:
    """Share of positives among the first k, or up to the last of them where that is sooner, as published."""
    among = min(int(at.max()) + 1, k)
    return float((at < among).sum() / among)


def _orders(queries: NDArray[np.float32], database: NDArray[np.float32]) -> Iterator[NDArray[np.int64]]:
    """The database's numbers for each query, the most alike first; of equal ones, the lower number."""
    for start in range(0, len(queries), 64):
        alike = queries[start : start + 64] @ database.T
        yield from np.argsort(-alike, axis=1, kind="stable")


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value
