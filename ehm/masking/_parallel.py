"""Runs a kernel over the images of a batch on several threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.processors import available_processors

__all__ = ["over_batch"]

WORTH_A_THREAD = 100_000
"""Matrix entries (about a quarter of a millisecond's work) below which starting a thread costs more than it saves."""


def over_batch(kernel: Callable[..., Any], *arrays: NDArray[Any], work: int, threads: int | None = None) -> None:
    """Call ``kernel`` on slices of ``arrays`` along their first axis; ``work`` is the entries of one image's matrix.

    numba's own ``prange`` is not used: its default threading layer aborts the process when two Python threads enter it
    at once, and hangs after a fork. Kernels that release the interpreter lock need no more than plain threads, which
    also obey ``threads`` (default: the processors that this process may use).
    """
    batch = len(arrays[0])
    threads = available_processors() if threads is None else threads
    chunks = max(1, min(threads, batch, batch * work // WORTH_A_THREAD))
    if chunks == 1:
        kernel(*arrays)
        return
    edges = np.linspace(0, batch, chunks + 1).astype(int)
    with ThreadPoolExecutor(chunks - 1) as pool:
        parts = [[array[start:stop] for array in arrays] for start, stop in pairwise(edges)]
        others = [pool.submit(kernel, *part) for part in parts[1:]]
        kernel(*parts[0])
        for other in others:
            other.result()
