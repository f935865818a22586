"""Bulk prediction: what an image costs, and how the speed grows from one worker of Ray to two.

    OMP_NUM_THREADS=1 python benchmarks/bulk_predict.py BUNDLE [--source elpv] [--part-size 64] [--parts 8] [--rounds 3]

The first table holds processor time, which other jobs on the machine change little: of reading and preparing an image,
of the network in batches of 8 on one thread, of writing a row, and of hashing a name. The second table holds images a
second of elapsed time, in this process and on one and two workers with one processor each. It begins when every worker
has done its first part, so that neither imports nor loading count. Images a second of processor time are those of the
workers alone; on a busy machine they say whether two workers hinder each other, which elapsed time does not. The runs
take turns, and ratios are taken in each round. Ray's own time is what a worker waits from part to part, of parts with
one image.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ehm.data.sources.base import Source
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.predict.bulk.job import BulkJob, hash_names, open_images
from ehm.deploy.predict.bulk.ray_engine import predict_on_ray, start_ray
from ehm.deploy.predict.bulk.table import write_rows
from ehm.deploy.predict.bulk.worker import PartSummary, PartWorker
from ehm.deploy.predict.predictor import Predictor

BATCH = 8
SAMPLE = 256
"""Images that the first table is measured on."""
SMALL_PARTS = 30
"""Parts of one image that show Ray's own time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--source", default="elpv")
    parser.add_argument("--part-size", type=int, default=64)
    parser.add_argument("--parts", type=int, default=8, help="parts that each run predicts")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    source = open_images(options.source, (), bundle.manifest)
    job = BulkJob(
        source=options.source,
        overrides=(),
        images=len(source),
        names=hash_names(source),
        bundle=options.bundle.absolute(),
        device="cpu",
        precision="float32",
        top=5,
        out=Path(),
        part_size=options.part_size,
        threads=1,
    )
    print(
        f"{len(source):,} images of {options.source}, {options.bundle}, load of the machine {os.getloadavg()[0]:.1f}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        print_costs(bundle, source, Path(folder), options.rounds)
        print_speeds(replace(job, out=Path(folder)), source, range(options.parts), options.rounds)
    print(f"\nload of the machine {os.getloadavg()[0]:.1f}")


def print_costs(bundle: Bundle, source: Source, folder: Path, rounds: int) -> None:
    predictor = Predictor(bundle, "cpu", threads=1)
    sample = range(min(SAMPLE, len(source)))

    def read_images() -> list[Any]:
        return [predictor.prepare(source.load(number)) for number in sample]

    inputs = read_images()
    batches = [np.stack(inputs[start : start + BATCH]) for start in range(0, len(inputs), BATCH)]
    rows = []
    for start, batch in zip(range(0, len(inputs), BATCH), batches, strict=True):
        outputs = predictor.run(batch)
        for row in range(len(batch)):
            values = {name: array[row] for name, array in outputs.items()}
            rows.append(predictor.handler.describe(source.name(start + row), values, 5))
    file = folder / "rows.parquet"
    costs: dict[str, tuple[Callable[[], object], int]] = {
        "reading and preparing an image": (read_images, len(sample)),
        "the network": (lambda: [predictor.run(batch) for batch in batches], len(sample)),
        "writing a row": (lambda: write_rows(file, bundle.manifest, rows, None), len(sample)),
        "hashing a name": (lambda: hash_names(source), len(source)),
    }
    print("| processor time of | µs an image | from ... to |\n|---|---|---|")
    for name, (function, count) in costs.items():
        times = [measure_processor_time(function) / count * 1e6 for _ in range(rounds)]
        print(f"| {name} | {statistics.median(times):,.1f} | {min(times):,.1f} ... {max(times):,.1f} |")
    print(f"\na row takes {file.stat().st_size / len(rows):,.0f} bytes on disk")


def measure_processor_time(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def print_speeds(job: BulkJob, source: Source, parts: range, rounds: int) -> None:
    ray = start_ray("local")
    runs: dict[str, list[Speed]] = {"this process": [], "1 worker of Ray": [], "2 workers of Ray": []}
    worker = PartWorker(job, source)
    for _ in range(rounds):
        runs["this process"].append(measure_speed(map(worker.predict_part, parts), 1))
        runs["1 worker of Ray"].append(measure_speed(predict_on_ray(ray, job, parts, 1), 1))
        runs["2 workers of Ray"].append(measure_speed(predict_on_ray(ray, job, parts, 2), 2))
    print("\n| on | images a second | from ... to | a second of processor time | from ... to |\n|---|---|---|---|---|")
    for name, speeds in runs.items():
        elapsed = describe([speed.elapsed for speed in speeds])
        processor = describe([speed.processor for speed in speeds])
        print(f"| {name} | {elapsed} | {processor} |")
    one = runs["1 worker of Ray"]
    two = runs["2 workers of Ray"]
    print("\n| 2 workers beside 1 | times | from ... to |\n|---|---|---|")
    pairs = list(zip(one, two, strict=True))
    print(f"| images a second | {describe([second.elapsed / first.elapsed for first, second in pairs], 2)} |")
    print(f"| a second of processor time | {describe([b.processor / a.processor for a, b in pairs], 2)} |")
    small = replace(job, part_size=1)
    waits = list(list_waits(predict_on_ray(ray, small, range(SMALL_PARTS), 1)))
    print(f"\nRay between parts: {statistics.median(waits) * 1e3:.0f} ms")


@dataclass(frozen=True)
class Speed:
    """Images a second of elapsed time, and of the workers' processor time."""

    elapsed: float
    processor: float


def describe(values: list[float], digits: int = 1) -> str:
    """Return the median and the spread as two cells of a table."""
    return f"{statistics.median(values):,.{digits}f} | {min(values):,.{digits}f} ... {max(values):,.{digits}f}"


def measure_speed(summaries: Iterable[PartSummary], workers: int) -> Speed:
    """Return the speed from the moment when each worker has done a part."""
    images = 0
    processor_seconds = 0.0
    start = 0.0
    for number, summary in enumerate(summaries):
        if number == workers - 1:
            start = time.perf_counter()
        elif number >= workers:
            images += summary.images
            processor_seconds += summary.processor_seconds
    return Speed(images / (time.perf_counter() - start), images / processor_seconds)


def list_waits(summaries: Iterable[PartSummary]) -> Iterator[float]:
    """Yield the seconds from part to part without those of the part itself."""
    last = None
    for summary in summaries:
        now = time.perf_counter()
        if last is not None:
            yield now - last - summary.seconds
        last = now


if __name__ == "__main__":
    main()
