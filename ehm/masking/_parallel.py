"""Threads that run a kernel over the images of a batch."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.processors import count_available_processors, spread_thread

__all__ = ["run_over_batch"]

ENTRIES_PER_THREAD = 200_000
"""Matrix entries that are worth a thread: half a millisecond of building trees. To wake a thread takes 0.01 ms."""

_pool: ThreadPoolExecutor | None = None
_pool_lock = Lock()


def run_over_batch(kernel: Callable[..., Any], *arrays: NDArray[Any], entries: int, threads: int | None = None) -> None:
    """Call ``kernel`` on slices of ``arrays`` along their first axis, on at most ``threads`` threads.

    ``entries`` says how much work an image is: as much as building a tree from so many matrix entries. Little work
    takes fewer threads. ``threads`` defaults to the processors that this process may use.
    """
    # numba's own prange is not used: its default threading layer aborts the process when two Python threads enter it
    # at once, and hangs after a fork. Kernels that release the interpreter lock need no more than plain threads.
    batch = len(arrays[0])
    if threads is None:
        threads = count_available_processors()
    chunks = max(1, min(threads, batch, batch * entries // ENTRIES_PER_THREAD))
    if chunks == 1:
        kernel(*arrays)
        return
    edges = np.linspace(0, batch, chunks + 1).astype(int)
    pool = _get_pool()
    futures = []
    for start, stop in pairwise(edges[1:]):
        futures.append(pool.submit(kernel, *(array[start:stop] for array in arrays)))
    try:
        # This thread takes the first slice instead of waiting.
        kernel(*(array[: edges[1]] for array in arrays))
    finally:
        # before the caller goes on with the arrays, or lets go of them because the kernel has failed
        wait(futures)
    for future in futures:
        future.result()


def _get_pool() -> ThreadPoolExecutor:
    """Return the threads of this process, which all calls share: to start threads for a call costs more than its work.

    A task never waits for another one, so calls from several threads cannot block each other.
    """
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="trees", initializer=spread_thread)
        return _pool


def _forget_pool() -> None:
    """Forget the threads of the parent in a process that was forked: they do not run there."""
    global _pool, _pool_lock
    _pool = None
    _pool_lock = Lock()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_forget_pool)
