"""Threads that run a kernel over the images of a batch."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.processors import count_available_processors, spread_thread

__all__ = ["run_over_batch"]

ENTRIES_PER_THREAD = 100_000
"""Matrix entries that are worth a thread, about a quarter of a millisecond; with fewer, its start costs more."""


def run_over_batch(kernel: Callable[..., Any], *arrays: NDArray[Any], entries: int, threads: int | None = None) -> None:
    """Call ``kernel`` on slices of ``arrays`` along their first axis, on at most ``threads`` threads.

    ``entries`` is the number of matrix entries of one image. ``threads`` defaults to the processors that this process
    may use.
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
    with ThreadPoolExecutor(chunks - 1, initializer=spread_thread) as pool:
        futures = []
        for start, stop in pairwise(edges[1:]):
            futures.append(pool.submit(kernel, *(array[start:stop] for array in arrays)))
        # This thread takes the first slice instead of waiting.
        kernel(*(array[: edges[1]] for array in arrays))
        for future in futures:
            future.result()
