"""The masks of a batch, made piece by piece: a training step may begin before the last of them are there.

Shapes: B images, V masks (views) of each, N patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray

__all__ = ["BatchMasks", "MaskPiece", "copy_to_host"]


@dataclass(frozen=True)
class MaskPiece:
    """The ``masks`` (b * V, N) of b images that follow each other in a batch, those of one image together.

    ``figures`` to log are arrays (b,) with a value for each image, or single values if the piece is the whole batch.
    """

    masks: Any
    figures: Mapping[str, Any]


class BatchMasks:
    """The ``count`` masks (B * V, N) of a batch, made from an iterator of ``pieces`` when they are asked for.

    A step on several parts of a batch asks for the masks of its first part alone. An accelerator then works on that
    part, while the host makes the masks of the next one.
    """

    def __init__(self, pieces: Iterator[MaskPiece], count: int) -> None:
        self._pieces = pieces
        self._count = count
        self._made: list[MaskPiece] = []
        self._made_count = 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, rows: slice) -> Any:
        """Return the masks of ``rows``, and make those that are not made yet."""
        start, stop, step = rows.indices(self._count)
        if step != 1:
            raise ValueError(f"masks are read in their order, not in steps of {step}")
        self._make(stop)
        found = []
        first = 0
        for piece in self._made:
            part = piece.masks[max(start - first, 0) : max(stop - first, 0)]
            if len(part):
                found.append(part)
            first += len(piece.masks)
        # a single piece may be a tensor of a framework, which stays what it is
        return found[0] if len(found) == 1 else np.concatenate(found)

    def read_all(self) -> Any:
        """Return all masks."""
        return self[:]

    def read_figures(self) -> dict[str, SupportsFloat]:
        """Return the mean of each figure over the batch; all masks are made for it."""
        self._make(self._count)
        means: dict[str, SupportsFloat] = {}
        for name in self._made[0].figures:
            values = [piece.figures[name] for piece in self._made if name in piece.figures]
            if len(values) < len(self._made):
                continue  # a piece whose masks had to be made otherwise has no such figure
            if isinstance(values[0], np.ndarray):
                means[name] = float(np.concatenate(values).mean())
            else:
                (means[name],) = values
        return means

    def _make(self, stop: int) -> None:
        """Make the first ``stop`` masks; behind the last one, the iterator is asked for its end, which checks it."""
        while self._made_count < stop or stop == self._count:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._made.append(piece)
            self._made_count += len(piece.masks)


def copy_to_host(masks: Any) -> NDArray[np.bool_]:
    """Return ``masks`` as an array, wherever they lie.

    Those that were made on a device stay there in training: only pictures, checks and records look at them.
    """
    # a tensor of any framework, on any device, has this method
    return np.array(masks.tolist(), bool)
