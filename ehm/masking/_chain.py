# mypy: disable-error-code="untyped-decorator"
"""Average-linkage trees of a batch by the nearest-neighbour chain (Benzécri, 1982; Juan, 1982), compiled by numba.

Start at any cluster and step to its nearest neighbour until two clusters are each other's nearest: these two may be
merged at once, because no later merge can bring anything nearer to either (average linkage is reducible). Sorted by
distance, the merges are those of the greedy loop (Eq. 5-13). The time is O(N^2). Arithmetic and tie-breaking are those
of SciPy's ``linkage(1 - S, "average")``, so that the trees are SciPy's to the last bit (unless SciPy's own rounding
puts a merge below one that it contains).

Two things make it fast. Distances are kept as full rows, so that a search is a contiguous scan, but a merge writes
one row only: every other row fetches what has changed, ``D[x, y] = D[y, x]``, when it is next looked at. And distances
are compared as integers, whose order is that of non-negative doubles and whose minimum the compiler vectorises.

Indices are unsigned throughout: numba guards signed ones against negative values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from ehm.masking._jit import kernel

__all__ = ["FAILED", "FINE", "build_trees"]

FINE = 0
"""Status of an image whose tree was built."""
FAILED = 1
"""Status of an image whose similarity is not symmetric, not finite or above ``base``; the caller finds out which."""

# Constants of the kernels' index type: a plain 1 would turn an unsigned index into a signed number.
ZERO = np.uint64(0)
ONE = np.uint64(1)
TWO = np.uint64(2)
FOUR = np.uint64(4)

FAR = 1e300
"""Distance of a cluster to itself: beyond every real one, and still finite after a weighted mean."""
FAR_BITS = int(np.array(FAR).view(np.int64))
GONE = np.int64(0x7FF0000000000000)
"""Put over the bits of the distance to a cluster that was merged away (bitwise or): larger than all others."""


def _multiply_add(_context: Any, a: Any, b: Any, c: Any) -> Any:
    """Compute ``a * b + c``, rounded once."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float64(a, b, c), generate


multiply_add: Any = intrinsic(_multiply_add)


@kernel
def build_trees(
    similarity: NDArray[Any],
    base: NDArray[np.float64],
    parent: NDArray[np.int32],
    level: NDArray[np.int32],
    size: NDArray[np.int32],
    merged: NDArray[np.float32],
    status: NDArray[np.int32],
) -> None:
    """Build trees of (B, N, N) similarities, at most ``base`` (B,), into (B, 2N-1) arrays and a (B,) status."""
    n = similarity.shape[1]
    # more than n, and an odd number of cache lines, so that a column spreads over the whole cache
    stride = np.uint64((n // 8 + 1 | 1) * 8)
    distance = np.empty(np.uint64(n + 1) * stride)
    left = np.empty(n - 1, np.uint64)
    right = np.empty(n - 1, np.uint64)
    height = np.empty(n - 1)
    for b in range(similarity.shape[0]):
        status[b] = load_distances(similarity[b], base[b], distance, stride)
        if status[b] == FINE:
            status[b] = merge_clusters(distance, stride, left, right, height)
        if status[b] == FINE:
            number_nodes(left, right, height, base[b], parent[b], level[b], size[b], merged[b])


@kernel
def load_distances(similarity: NDArray[Any], base: float, distance: NDArray[np.float64], stride: np.uint64) -> int:
    """Store ``base - similarity`` in rows of ``stride``; return FAILED if the diagonal is not finite."""
    n = np.uint64(similarity.shape[0])
    diagonal = 0.0
    for i in range(n):
        row = i * stride
        for j in range(n):
            distance[row + j] = base - np.float64(similarity[i, j])
        # stays 0 for finite numbers, becomes NaN for others; all other entries are compared in merge_clusters
        diagonal += 0.0 * distance[row + i]
        distance[row + i] = FAR
    return FINE if diagonal == 0.0 else FAILED


@kernel
def merge_clusters(
    distance: NDArray[np.float64],
    stride: np.uint64,
    left: NDArray[np.uint64],
    right: NDArray[np.uint64],
    height: NDArray[np.float64],
) -> int:
    """Make all N-1 merges in the chain's order: write both clusters and their distance for each.

    The clusters 0 to N-1 are leaves, N+k is made by merge k. Returns FAILED if a distance is not symmetric, not finite
    or negative.
    """
    n = np.uint64(height.size + 1)
    width = n  # columns in use: the matrix is squeezed whenever half of its clusters are gone
    bits = distance.view(np.int64)  # the same distances as integers, whose minimum vectorises

    # by column: the cluster's number, the height of its last merge, and its leaves (0: merged away)
    node = np.empty(n, np.uint64)
    last = np.zeros(n)
    size = np.ones(n)
    seen = np.zeros(n, np.uint64)  # by column: the merge that the column's row is up to date with
    gone = np.zeros(n, np.int64)  # by column: GONE if the cluster was merged away, else 0
    grown = np.full(n + FOUR, n, np.uint64)  # by merge: the column of the cluster that it made

    # the chain of nearest neighbours, and the distance of each link to the next one
    chain = np.empty(n, np.uint64)
    reach = np.empty(n)
    reach_bits = reach.view(np.int64)
    length = ZERO

    moved = np.empty(n, np.uint64)  # by column before a squeeze: the column after it
    start = ZERO  # the first column that may begin a chain
    columns = np.int64(1)  # a mask for column numbers
    while columns < n:
        columns *= 2
    columns -= 1
    for j in range(n):
        node[j] = j

    for k in range(n - ONE):
        # 1. Squeeze the matrix once the clusters that are left fill half of its columns.
        if TWO * (n - k) <= width:
            for j in range(width):
                if size[j] > 0:
                    refresh_row(distance, stride, j, grown, seen[j], k)
            width = squeeze_columns(distance, stride, width, size, node, last, moved)
            for j in range(width):
                seen[j] = k
                gone[j] = 0
            for i in range(length):
                chain[i] = moved[chain[i]]
            start = ZERO

        # 2. Begin a chain if none is left, and follow it until two clusters x and y are each other's nearest.
        if length == ZERO:
            while size[start] == 0:
                start += ONE
            chain[ZERO] = start
            length = ONE
        while True:
            x = chain[length - ONE]
            row = x * stride
            refresh_row(distance, stride, x, grown, seen[x], k)
            seen[x] = k
            # Written out here: as a function of its own the search takes 3 % more time.
            nearest = bits[row] | gone[ZERO]
            tagged = nearest & ~columns  # the column in the lowest bits: finds it without a second, branching search
            for j in range(width):
                candidate = bits[row + j] | gone[j]
                nearest = min(nearest, candidate)
                tagged = min(tagged, (candidate & ~columns) | np.int64(j))
            if nearest < 0 or nearest >= FAR_BITS:
                return FAILED
            if length > ONE:
                y = chain[length - TWO]
                if bits[row + y] != reach_bits[length - TWO]:
                    return FAILED  # not symmetric; every link is checked, without which the chain could run in a circle
                if bits[row + y] == nearest:
                    break
            y = np.uint64(tagged & columns)
            if bits[row + y] != nearest:  # two distances differ in the lowest bits only
                y = ZERO
                while (bits[row + y] | gone[y]) != nearest:
                    y += ONE
            if length == n:
                return FAILED
            reach[length - ONE] = distance[row + y]
            chain[length] = y
            length += ONE

        # 3. Merge x into y, the higher column.
        length -= TWO
        refresh_row(distance, stride, y, grown, seen[y], k)
        x, y = min(x, y), max(x, y)
        left[k] = node[x]
        right[k] = node[y]
        height[k] = max(reach[length], last[x], last[y])  # rounding can put a merge a hair below one that it contains
        last[y] = height[k]
        unite_rows(distance, x * stride, y * stride, width, size[x], size[y])
        size[y] += size[x]
        size[x] = 0
        gone[x] = GONE
        node[y] = n + k
        seen[y] = k + ONE
        grown[k] = y
    return FINE


@kernel
def squeeze_columns(
    distance: NDArray[np.float64],
    stride: np.uint64,
    width: np.uint64,
    size: NDArray[np.float64],
    node: NDArray[np.uint64],
    last: NDArray[np.float64],
    moved: NDArray[np.uint64],
) -> np.uint64:
    """Copy the clusters that are left, of ``width`` columns, to the first columns; return how many they are.

    Writes the new column of each old one into ``moved``. All rows must be up to date.
    """
    kept = np.empty(width, np.uint64)
    count = ZERO
    for j in range(width):
        kept[count] = j
        moved[j] = count
        count += ONE if size[j] > 0 else ZERO
    # A cluster moves down only, so nothing is overwritten before it is copied.
    for i in range(count):
        source = kept[i] * stride
        for j in range(count):
            distance[i * stride + j] = distance[source + kept[j]]
        node[i] = node[kept[i]]
        last[i] = last[kept[i]]
        size[i] = size[kept[i]]
    return count


@kernel
def refresh_row(
    distance: NDArray[np.float64],
    stride: np.uint64,
    x: np.uint64,
    grown: NDArray[np.uint64],
    since: np.uint64,
    now: np.uint64,
) -> None:
    """Fetch into row ``x`` the distances to the clusters that the merges ``since`` up to ``now`` have made."""
    row = x * stride
    merge = since
    while merge < now:  # four at a time, a tenth faster: beyond ``now`` lies a column that nobody reads
        for i in range(FOUR):
            y = grown[merge + i]
            distance[row + y] = distance[y * stride + x]
        merge += FOUR
    distance[row + x] = FAR


@kernel
def unite_rows(
    distance: NDArray[np.float64], x: np.uint64, y: np.uint64, width: np.uint64, size_x: float, size_y: float
) -> None:
    """Replace the row at ``y`` by the mean of both rows weighted by size (Eq. 7; Lance and Williams, 1967).

    The quotient is that of a division, rounded correctly (Markstein, 1990), in a third of its time.
    """
    total = size_x + size_y
    inverse = 1.0 / total
    for j in range(width):
        weighted = size_x * distance[x + j] + size_y * distance[y + j]
        quotient = weighted * inverse
        distance[y + j] = multiply_add(multiply_add(-total, quotient, weighted), inverse, quotient)


@kernel
def number_nodes(
    left: NDArray[np.uint64],
    right: NDArray[np.uint64],
    height: NDArray[np.float64],
    base: float,
    parent: NDArray[np.int32],
    level: NDArray[np.int32],
    size: NDArray[np.int32],
    merged: NDArray[np.float32],
) -> None:
    """Number the clusters by their height and fill one image's rows."""
    merges = np.uint64(height.size)
    leaves = merges + ONE
    number = np.empty(leaves + merges, np.uint64)
    for v in range(leaves):
        number[v] = v
        level[v] = 1
        size[v] = 1
        merged[v] = np.nan
    # An insertion sort is stable: of equal heights a part comes before its whole.
    order = np.empty(merges, np.uint64)
    for i in range(merges):
        j = np.uint64(i)
        while j > ZERO and height[order[j - ONE]] > height[i]:
            order[j] = order[j - ONE]
            j -= ONE
        order[j] = i
    for i in range(merges):
        number[leaves + order[i]] = leaves + i
    for i in range(merges):
        v = number[leaves + i]
        a = number[left[i]]
        b = number[right[i]]
        parent[a] = v
        parent[b] = v
        level[v] = 1 + max(level[a], level[b])
        size[v] = size[a] + size[b]
        merged[v] = base - height[i]
    parent[leaves + merges - ONE] = -1
