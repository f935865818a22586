"""Work on many files at once, in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from ehm.processors import spread_thread

__all__ = ["map_in_threads"]

T = TypeVar("T")
R = TypeVar("R")


def map_in_threads(function: Callable[[T], R], items: Iterable[T], count: int) -> Iterator[R]:
    """Yield ``function`` of each item, in order, computed by ``count`` threads a little ahead; 0 computes it here."""
    if count == 0:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(count, thread_name_prefix="data", initializer=spread_thread) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * count:  # every thread has an item, and another one waits for it
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
