"""The time for which reading and writing tensors as JSON keeps the rest of the server waiting: Python's json and ours.

    python benchmarks/serve_json.py [--rounds 5]

24 images of 96 x 96 pixels as JSON, 13.7 MB. While one thread reads or writes them, another one sleeps a millisecond
again and again, and notes how late it wakes: so long would the server's event loop answer nobody. Medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable

import numpy as np

from ehm.deploy.serve.routes.json_numbers import dump_numbers, parse_numbers


def measure_call(function: Callable[[], object]) -> tuple[float, float]:
    """Return how long the call took and the longest time in it for which another thread waited, in seconds."""
    waits: list[float] = []
    done = threading.Event()

    def wake_often() -> None:
        last = time.perf_counter()
        while not done.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            waits.append(now - last - 0.001)
            last = now

    waiting = threading.Thread(target=wake_often)
    waiting.start()
    time.sleep(0.05)
    started = time.perf_counter()
    function()
    taken = time.perf_counter() - started
    done.set()
    waiting.join()
    return taken, max(waits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    images = np.random.default_rng(0).standard_normal((24, 3, 96, 96)).astype(np.float32)
    flat = json.dumps(images.ravel().tolist())
    nested = json.dumps(images.tolist())
    calls: dict[str, Callable[[], object]] = {
        "read, flat, json.loads": lambda: json.loads(flat),
        "read, flat, in steps": lambda: parse_numbers(flat),
        "read, nested, json.loads": lambda: json.loads(nested),
        "read, nested, in steps": lambda: parse_numbers(nested),
        "write, json.dumps": lambda: json.dumps(images.ravel().tolist()),
        "write, in steps": lambda: dump_numbers(images),
    }
    print(f"{len(flat) / 1e6:.1f} MB\n\n| | ms in all | ms that another thread waits at most |\n|---|---|---|")
    for name, call in calls.items():
        results = [measure_call(call) for _ in range(rounds)]
        taken = statistics.median(taken for taken, _ in results)
        waited = statistics.median(waited for _, waited in results)
        print(f"| {name} | {1000 * taken:.0f} | {1000 * waited:.0f} |")


if __name__ == "__main__":
    main()
