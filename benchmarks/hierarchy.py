"""Average-linkage trees of many small similarity matrices: ehm beside fastcluster and SciPy.

    python benchmarks/hierarchy.py [--patches 49 196] [--turns 25]
    python benchmarks/hierarchy.py --balancing [--patches 49 196] [--turns 25]

Prints microseconds an image, the best of several turns that the contestants take one after the other. ehm starts from
the float32 similarity that a model gives and returns the whole hierarchy; the others get float64 distances in condensed
form, ready made, and do one image after the other on one core. The last columns are the time of ehm on one core divided
by that of fastcluster: of the best turns, and of each turn (median, quartiles). "random" is symmetrised noise,
"attention" comes from 16 random features.

With --balancing prints what balancing takes beside a tree, in microseconds of one core's time, which other programs on
the machine change little.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import fastcluster
import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from ehm.masking import balance, build_hierarchy

PATCHES = (49, 100, 196, 400, 784, 1024)
Array = NDArray[np.float32]


def random_similarity(batch: int, n: int) -> Array:
    """Draw symmetrised noise: (batch, n, n)."""
    values = np.random.default_rng(0).random((batch, n, n))
    return ((values + values.transpose(0, 2, 1)) / 2).astype(np.float32)


def attention_similarity(batch: int, n: int) -> Array:
    """Compute the symmetrised attention of random features: (batch, n, n)."""
    features = np.random.default_rng(0).normal(size=(batch, n, 16))
    weights = np.exp(features @ features.transpose(0, 2, 1) / 4)
    weights /= weights.sum(axis=2, keepdims=True)
    return ((weights + weights.transpose(0, 2, 1)) / 2).astype(np.float32)


def measure_contestants(similarity: Array, turns: int) -> dict[str, NDArray[np.float64]]:
    """Measure the microseconds an image of each contestant, (turns,) each."""
    distances = [squareform(1 - image.astype(np.float64), checks=False) for image in similarity]
    contestants: dict[str, Callable[[], object]] = {
        "ehm": lambda: build_hierarchy(similarity, threads=1),
        "ehm, 2 threads": lambda: build_hierarchy(similarity, threads=2),
        "fastcluster": lambda: [fastcluster.linkage(d, method="average") for d in distances],
        "SciPy": lambda: [linkage(d, method="average") for d in distances],
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(turns + 1):  # the first turn compiles and warms up
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) / len(similarity) * 1e6)
    return {name: np.array(values[1:]) for name, values in times.items()}


def print_balancing(patches: list[int], turns: int) -> None:
    """Print the microseconds of a core that balancing and building a tree take for an image, the best of ``turns``."""
    print("patches  balancing  tree  tree of balanced")
    for n in patches:
        similarity = attention_similarity(max(8, 32 * 196**2 // n**2), n)
        balanced = balance(similarity, threads=1)
        contestants: dict[str, Callable[[], object]] = {
            "balancing": lambda similarity=similarity: balance(similarity, threads=1),
            "tree": lambda similarity=similarity: build_hierarchy(similarity, threads=1),
            "tree of balanced": lambda balanced=balanced: build_hierarchy(balanced, threads=1),
        }
        best = dict.fromkeys(contestants, math.inf)
        for _ in range(turns + 1):  # the first turn compiles and warms up
            for name, run in contestants.items():
                start = time.thread_time()
                run()
                best[name] = min(best[name], (time.thread_time() - start) / len(similarity) * 1e6)
        print(f"{n:7}  {best['balancing']:9.1f}  {best['tree']:4.0f}  {best['tree of balanced']:16.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, nargs="+", default=PATCHES)
    parser.add_argument("--turns", type=int, default=25)
    parser.add_argument("--balancing", action="store_true")
    arguments = parser.parse_args()
    if arguments.balancing:
        print_balancing(arguments.patches, arguments.turns)
        return
    print("                                                                ratio to fastcluster")
    print("similarity  patches  images      ehm  2 threads  fastcluster    SciPy  best  each turn")
    for kind in (random_similarity, attention_similarity):
        ours = {}
        for n in arguments.patches:
            # fewer images of more patches, so that every row takes about as long
            images = min(64, max(8, 32 * 196**2 // n**2))
            similarity = kind(images, n)
            times = measure_contestants(similarity, arguments.turns)
            low, middle, high = np.quantile(times["ehm"] / times["fastcluster"], [0.25, 0.5, 0.75])
            one, two, fast, scipy = (float(values.min()) for values in times.values())
            ours[n] = one
            name = kind.__name__.removesuffix("_similarity")
            print(
                f"{name:10}  {n:7}  {len(similarity):6}  {one:7.1f}  {two:9.1f}  {fast:11.1f}  {scipy:7.1f}"
                f"  {one / fast:.2f}  {middle:.2f} ({low:.2f} - {high:.2f})",
                flush=True,
            )
        small = min(ours)
        large = max(ours)
        if small < large:
            power = math.log(ours[large] / ours[small]) / math.log(large / small)
            print(f"from {small} to {large} patches, ehm's time grows as N^{power:.2f}\n")


if __name__ == "__main__":
    main()
