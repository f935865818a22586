"""Images a second that reach a training loop: ehm's loader beside torch's DataLoader and Grain, if it is installed.

    python benchmarks/loader.py [--images 512] [--batch-size 64] [--workers 0 1 2] [--rounds 2]

All read ELPV's photographs through the same decoder and the same random resized crop to 224 x 224, so that only the
machinery differs. The clock starts when the first batch is there; the time until then is a column of its own. CPU time
is that of all processes together. Each figure is the best of the rounds, which go through all loaders in turn. Ten
seconds after the training process was killed (kill -9), the processes that it left behind are counted.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import islice, product

import numpy as np
import psutil

from ehm.config import DataConfig
from ehm.data import Loader, TrainTransform, open_source

SOURCE = open_source(DataConfig())
TRANSFORM = TrainTransform((224, 224))


class Samples:
    """ELPV as torch's DataLoader takes it."""

    def __len__(self) -> int:
        return len(SOURCE)

    def __getitem__(self, index: int) -> np.ndarray:
        return TRANSFORM(SOURCE.load(index), np.random.default_rng(index))


class Batches:
    """ELPV as batches by number, for Grain: a step of its pipeline is a whole batch, as with ours."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.order = np.random.default_rng(0).permutation(len(SOURCE)).tolist()

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, step: int) -> np.ndarray:
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        return np.stack([Samples()[self.order[position % len(SOURCE)]] for position in positions])


def ehm_batches(batch_size: int, workers: int) -> Iterator[object]:
    options = {"batch_size": batch_size, "seed": 0, "shuffle": True, "drop_last": True, "workers": workers}
    with Loader(SOURCE, TRANSFORM, **options) as loader:
        yield from loader.batches(0, 1_000_000)


def torch_batches(batch_size: int, workers: int) -> Iterator[object]:
    from torch.utils.data import DataLoader

    loader = DataLoader(Samples(), batch_size, shuffle=True, num_workers=workers, drop_last=True)
    while True:
        yield from loader


def grain_batches(batch_size: int, workers: int) -> Iterator[object]:
    import grain

    dataset = grain.MapDataset.source(Batches(batch_size)).to_iter_dataset(
        grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    )
    if workers:
        dataset = dataset.mp_prefetch(grain.multiprocessing.MultiprocessingOptions(num_workers=workers))
    yield from dataset


PEERS = {"ehm": ehm_batches, "torch": torch_batches, "grain": grain_batches}


def read_cpu_seconds() -> float:
    """Return the CPU seconds of this process and of all that it started and that are still alive."""
    me = psutil.Process()
    seconds = 0.0
    for process in (me, *me.children(recursive=True)):
        times = process.cpu_times()
        seconds += times.user + times.system
    return seconds


def measure_loader(peer: str, batch_size: int, workers: int, images: int) -> tuple[float, float, float]:
    """Measure seconds to the first batch, then seconds and CPU seconds for an image."""
    start = time.perf_counter()
    batches = PEERS[peer](batch_size, workers)
    next(batches)
    first = time.perf_counter()
    cpu_before = read_cpu_seconds()
    count = batch_size * sum(1 for _ in islice(batches, images // batch_size))
    seconds = time.perf_counter() - first
    cpu = read_cpu_seconds() - cpu_before
    batches.close()
    return first - start, seconds / count, cpu / count


def count_left_behind(peer: str) -> int:
    """Count the processes that are alive ten seconds after the one that started them was killed."""
    child = subprocess.Popen(
        [sys.executable, __file__, "--hold", peer], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    child.stdout.readline()
    family = psutil.Process(child.pid).children(recursive=True)
    child.send_signal(signal.SIGKILL)
    child.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    for process in alive:
        process.kill()
    return len(alive)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--hold", choices=PEERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.hold:
        batches = PEERS[arguments.hold](16, 2)
        next(batches)
        print("ready", flush=True)
        signal.pause()
    peers = [peer for peer in PEERS if peer == "ehm" or find_spec(peer)]
    runs = list(product(arguments.workers, peers))
    best = dict.fromkeys(runs, (math.inf,) * 3)
    for workers, peer in runs * arguments.rounds:
        measured = measure_loader(peer, arguments.batch_size, workers, arguments.images)
        best[workers, peer] = tuple(map(min, best[workers, peer], measured))
    print(f"{os.cpu_count()} cores, batches of {arguments.batch_size}, best of {arguments.rounds} rounds\n")
    print("| loader | workers | first batch, s | images/s | CPU, ms an image |\n|---|---|---|---|---|")
    for (workers, peer), (first, seconds, cpu) in best.items():
        print(f"| {peer} | {workers} | {first:.2f} | {1 / seconds:.0f} | {1000 * cpu:.1f} |")
    print("\n| loader | processes left 10 s after kill -9, of 2 workers |\n|---|---|")
    for peer in peers:
        print(f"| {peer} | {count_left_behind(peer)} |", flush=True)


if __name__ == "__main__":
    main()
