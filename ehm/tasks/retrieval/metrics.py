"""Mean average precision of rankings by the rules of revisited Oxford and Paris (Radenovic et al., 2018).

Shapes: q queries, m images of the database, D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from ehm.console import console
from ehm.report.run_card import FiguresCard
from ehm.tasks.retrieval.answers import Answers

__all__ = ["KAPPAS", "Protocol", "RetrievalReport", "compute_average_precision", "find_ranks", "report_retrieval"]

KAPPAS = (1, 5, 10)
"""The precision is measured among the first so many images of a ranking."""
_NO_IMAGES = np.zeros(0, np.int64)
_QUERIES_AT_ONCE = 64


@dataclass(frozen=True)
class Protocol:
    """Figures in [0, 1]: means over the ``queries`` that have images to find.

    ``map`` is the mean average precision, and ``precision[i]`` the mean precision among the first ``KAPPAS[i]`` images,
    or up to the last image to find if that comes sooner. Both are NaN, null in JSON, if there are no such queries.
    """

    queries: int
    map: float
    precision: tuple[float, ...]


@dataclass(frozen=True)
class RetrievalReport(FiguresCard):
    """The figures of ``protocols`` by name, the number of ``images`` in the database, and the ``descriptor``'s length.

    Revisited benchmarks have three protocols: ``medium`` (find easy and hard images), ``hard`` (find hard ones; easy
    ones are junk) and ``easy`` (find easy ones; hard ones are junk). Others have one, ``all``.
    """

    protocols: dict[str, Protocol]
    images: int
    descriptor: int

    @property
    def figures(self) -> Mapping[str, float | None]:
        """The figures for all queries together: mAP of every protocol, then the precisions."""
        figures: dict[str, float | None] = {}
        for name, protocol in self.protocols.items():
            figures[f"map{_make_suffix(name)}"] = _replace_nan(protocol.map)
        for name, protocol in self.protocols.items():
            for kappa, precision in zip(KAPPAS, protocol.precision, strict=True):
                figures[f"mp{kappa}{_make_suffix(name)}"] = _replace_nan(precision)
        return figures

    @property
    def score(self) -> float:
        """The figure that the best checkpoint is chosen by: mean average precision, of the protocol medium if any."""
        return next((value for value in self.figures.values() if value is not None), 0.0)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for ``metrics.json``."""
        protocols = {}
        for name, protocol in self.protocols.items():
            protocols[name] = {
                **asdict(protocol),
                "map": _replace_nan(protocol.map),
                "precision": list(map(_replace_nan, protocol.precision)),
            }
        return {
            "images": self.images,
            "descriptor": self.descriptor,
            "kappas": list(KAPPAS),
            "protocols": protocols,
        }

    def show(self) -> None:
        """Print a row for each protocol."""
        table = Table("protocol", "queries", "mAP")
        for kappa in KAPPAS:
            table.add_column(f"mP@{kappa}")
        for name, protocol in self.protocols.items():
            shares = map("{:.1%}".format, (protocol.map, *protocol.precision))
            table.add_row(name, f"{protocol.queries:,}", *shares)
        console.print(f"{self.images:,} images in the database, descriptors of {self.descriptor} features")
        console.print(table)


def report_retrieval(
    queries: NDArray[np.float32], database: NDArray[np.float32], answers: Sequence[Answers], revisited: bool
) -> RetrievalReport:
    """Rank ``database`` (m, D) for each of ``queries`` (q, D) by their product, and compare with the ``answers``."""
    names = ("medium", "hard", "easy") if revisited else ("all",)
    figures: dict[str, list[list[float]]] = {name: [] for name in names}
    for order, answer in zip(_rank_database(queries, database), answers, strict=True):
        for name in names:
            positive, junk = _divide_answers(answer, name)
            if len(positive):  # the published code also skips queries without images to find
                ranks = find_ranks(order, positive, junk)
                precisions = [_compute_precision(ranks, kappa) for kappa in KAPPAS]
                figures[name].append([compute_average_precision(ranks), *precisions])
    protocols = {}
    for name, rows in figures.items():
        if rows:
            mean_ap, *precisions = np.array(rows).mean(axis=0).tolist()
        else:
            mean_ap = float("nan")
            precisions = [float("nan")] * len(KAPPAS)
        protocols[name] = Protocol(len(rows), mean_ap, tuple(precisions))
    return RetrievalReport(protocols, len(database), queries.shape[1])


def _divide_answers(answer: Answers, protocol: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the images to find, and those that count neither for nor against, by the rules of ``protocol``."""
    if protocol == "medium":
        return np.concatenate([answer.easy, answer.hard]), answer.junk
    if protocol == "hard":
        return answer.hard, np.concatenate([answer.junk, answer.easy])
    if protocol == "easy":
        return answer.easy, np.concatenate([answer.junk, answer.hard])
    return answer.easy, answer.junk


def find_ranks(
    order: NDArray[np.int64], positive: NDArray[np.int64], junk: NDArray[np.int64] = _NO_IMAGES
) -> NDArray[np.int64]:
    """Return the sorted ranks, from 0 on, of ``positive`` images in ``order`` (m,) without ``junk``."""
    kept = order[~np.isin(order, junk)]
    return np.flatnonzero(np.isin(kept, positive))


def compute_average_precision(ranks: NDArray[np.int64]) -> float:
    """Return the area under the curve of precision over recall, given the sorted ``ranks`` (n,) of all positives.

    It is computed by trapezoids, as in the published ``compute_ap``: each positive adds the mean of the precision just
    before it and the precision with it. scikit-learn's ``average_precision_score`` only takes the latter, which is
    less.
    """
    # before rank 0 there is no precision; the published code takes 1
    found = np.arange(len(ranks))
    before = np.where(ranks == 0, 1.0, found / np.maximum(ranks, 1))
    return float(np.mean((before + (found + 1) / (ranks + 1)) / 2))


def _compute_precision(ranks: NDArray[np.int64], kappa: int) -> float:
    """Return the share of positives among the first ``kappa`` images, or up to the last positive if that is sooner."""
    images = min(int(ranks.max()) + 1, kappa)
    return float((ranks < images).sum() / images)


def _rank_database(queries: NDArray[np.float32], database: NDArray[np.float32]) -> Iterator[NDArray[np.int64]]:
    """Yield the indices of the database for each query, the most similar first, and of equal ones the lower index."""
    # in blocks of queries, because all similarities together may not fit into memory
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        similarity = queries[start : start + _QUERIES_AT_ONCE] @ database.T
        yield from np.argsort(-similarity, axis=1, kind="stable")


def _make_suffix(protocol: str) -> str:
    return "" if protocol == "all" else f"_{protocol}"


def _replace_nan(value: float) -> float | None:
    return None if np.isnan(value) else value
