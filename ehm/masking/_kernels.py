"""The loops of the masking core, compiled by numba at their first use and cached; the interpreter lock is released.

Import this module inside functions only: importing numba takes longer than the rest of ehm together. Where the package's
folder cannot be written, numba caches below the user's home, or in ``NUMBA_CACHE_DIR``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

__all__ = ["average_linkage", "mark", "sinkhorn"]


@njit(nogil=True, cache=True)
def sinkhorn(batch: Any, iterations: int) -> None:
    """Balance (B, N, N) in place, diagonal zero."""
    size = batch.shape[1]
    for b in range(batch.shape[0]):
        similarity = batch[b]
        for i in range(size):
            similarity[i, i] = 0
        total = np.empty(size)
        for _ in range(iterations):
            for i in range(size):
                row = 0.0
                for j in range(size):
                    row += similarity[i, j]
                total[i] = row
            for i in range(size):
                total[i] = 1 / np.sqrt(total[i]) if total[i] > 0 else 0.0
            for i in range(size):
                for j in range(size):
                    similarity[i, j] = similarity[i, j] * total[i] * total[j]


@njit(nogil=True, cache=True)
def average_linkage(similarity: Any, left: Any, right: Any, heights: Any) -> None:
    """Merges of one image (N, N) by nearest-neighbour chains: slots joined and their mean similarity, not yet sorted.

    ``left[k] < right[k]`` are representatives: the merged cluster goes on in slot ``right[k]``.
    """
    n = similarity.shape[0]
    s = similarity.astype(np.float64)
    size = np.ones(n)
    for i in range(n):
        s[i, i] = -np.inf
    chain = np.empty(n, np.int64)
    length = 0
    for k in range(n - 1):
        if length == 0:
            first = 0
            while size[first] == 0:
                first += 1
            chain[0] = first
            length = 1
        while True:
            x = chain[length - 1]
            y = chain[length - 2] if length > 1 else -1
            best = s[x, y] if length > 1 else -np.inf
            for j in range(n):
                if s[x, j] > best:
                    best = s[x, j]
                    y = j
            if length > 1 and y == chain[length - 2]:
                break
            chain[length] = y
            length += 1
        length -= 2
        if x > y:
            x, y = y, x
        left[k], right[k], heights[k] = x, y, best
        total = size[x] + size[y]
        for j in range(n):
            mean = (size[x] * s[x, j] + size[y] * s[y, j]) / total
            s[y, j] = mean
            s[j, y] = mean
            s[x, j] = -np.inf
            s[j, x] = -np.inf
        s[y, y] = -np.inf
        size[x], size[y] = 0, total


@njit(nogil=True, cache=True)
def mark(order: Any, children: Any, priority: Any, count: int, mask: Any) -> None:
    """Hide the leaves of the nodes in ``order``, one node after the other, until ``count`` are hidden.

    The last node is walked from its root, the child of lower priority first, and its first leaves are hidden.
    """
    n = mask.size
    stack = np.empty(n, np.int64)
    hidden = 0
    for node in order:
        if hidden == count:
            return
        stack[0] = node
        length = 1
        while length > 0 and hidden < count:
            length -= 1
            top = stack[length]
            if top < n:
                mask[top] = True
                hidden += 1
                continue
            first, second = children[top - n, 0], children[top - n, 1]
            if priority[first] > priority[second]:
                first, second = second, first
            stack[length], stack[length + 1] = second, first
            length += 2
