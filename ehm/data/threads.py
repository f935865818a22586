"""Work on many files at once, where their sizes differ and shared memory of one shape does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["in_threads"]

T = TypeVar("T")
R = TypeVar("R")


def in_threads(function: Callable[[T], R], items: Iterable[T], count: int) -> Iterator[R]:
    """``function`` of each of ``items``, in order, worked out by ``count`` threads a little ahead; none: here."""
    if count == 0:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(count, thread_name_prefix="data") as pool:
        waiting = []
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * count:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()
