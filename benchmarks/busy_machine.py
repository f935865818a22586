"""The speed of pretraining beside other programs, by the number of OpenMP's threads and the way that they wait.

    python benchmarks/busy_machine.py [--neighbours 0 1 3] [--threads 2 1] [--seconds 4] [--rounds 2]

Trains `elpv/pretrain` with its data workers, in a process for each way of waiting and number of threads, beside 0, 1
and 3 neighbours: processes that keep a core busy. The trainers take turns, one at a time for some seconds, round after
round, so that all of them meet the same machine. A ratio compares two figures of the same round. The table has medians
over the rounds, with the lowest and the highest. It takes three to four minutes on two cores.

Another environment is measured with `--python` and `--device`, for example MindSpore's:

    python benchmarks/busy_machine.py --python .venv-mindspore/bin/python --device mindspore:cpu
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count

from ehm.processors import WAITING, count_available_processors

POLICIES = {
    "spin, the library's own choice": {"GOMP_SPINCOUNT": "300000"},
    "spin briefly": {"GOMP_SPINCOUNT": "1000"},
    "sleep, ehm's choice": WAITING,
}
DECIDING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
BUSY = "while True: pass"
WARM_UP = 5
"""Steps in which kernels are compiled and memory is allocated."""


@dataclass
class Trainer:
    """A process that trains for a number of seconds when it is told to, and reports its images a second."""

    policy: str
    threads: int
    process: subprocess.Popen[str]
    rates: dict[int, list[float]] = field(default_factory=dict)
    """Images a second in each round, by the number of neighbours."""

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            raise SystemExit(f"{self.policy}, {self.threads} threads: the process ended before it could train")

    def train(self, seconds: float) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        return float(json.loads(self.process.stdout.readline()))


def train_when_told(device: str) -> None:
    """Run in the trainer's process: read seconds, train, print images a second."""
    from ehm import backends
    from ehm.config import TrainConfig, load_config
    from ehm.data import Loader, TrainTransform, open_source
    from ehm.masking import make_masker

    config = load_config(TrainConfig, "elpv/pretrain")
    learner = backends.get(device).create_learner(config)
    masker = make_masker(config.masking, config.masks, config.units)
    source = open_source(config.data, "train")
    transform = TrainTransform(config.image_size, config.data.crop_scale)
    size = config.optim.batch_size
    workers = config.data.workers
    loader = Loader(source, transform, batch_size=size, seed=0, shuffle=True, drop_last=True, workers=workers)
    batches = zip(count(), loader.batches(0, 10**6))

    def take_step() -> None:
        number, batch = next(batches)
        prepared = learner.prepare_batch(batch.images)
        mask, _ = masker(prepared, 0.3, (number,))
        float(learner.train_step(prepared, mask, 1e-4, 0.05)["loss"])

    with loader:
        for _ in range(WARM_UP):
            take_step()
        print("ready", flush=True)
        for line in sys.stdin:
            steps = 0
            start = time.perf_counter()
            while (elapsed := time.perf_counter() - start) < float(line):
                take_step()
                steps += 1
            print(json.dumps(steps * size / elapsed), flush=True)


@contextmanager
def start_trainer(policy: str, threads: int, args: argparse.Namespace) -> Iterator[Trainer]:
    environment = {name: value for name, value in os.environ.items() if name not in DECIDING}
    environment |= POLICIES[policy] | {"OMP_NUM_THREADS": str(threads)}
    command = [args.python, __file__, "--device", args.device, "--trainer"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        try:
            yield Trainer(policy, threads, process)
        finally:
            process.terminate()


@contextmanager
def run_neighbours(number: int) -> Iterator[None]:
    """Keep ``number`` cores busy while the block runs."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(number)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def measure_trainers(args: argparse.Namespace) -> list[Trainer]:
    with ExitStack() as stack:
        trainers = []
        for threads in args.threads:
            for policy in POLICIES:
                trainers.append(stack.enter_context(start_trainer(policy, threads, args)))
        for one in trainers:
            one.wait_until_ready()
        for round_ in range(args.rounds):
            for number in args.neighbours:
                with run_neighbours(number):
                    for one in trainers:
                        one.rates.setdefault(number, []).append(one.train(args.seconds))
            print(f"round {round_ + 1} of {args.rounds} done", file=sys.stderr, flush=True)
        return trainers


def format_spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} - {max(values):.{digits}f})"


def divide_pairs(values: list[float], others: list[float]) -> list[float]:
    """Divide each value by the one of the same round."""
    return [value / other for value, other in zip(values, others, strict=True)]


def print_table(trainers: list[Trainer], args: argparse.Namespace) -> None:
    print(f"{args.device}, {count_available_processors()} processors, {args.rounds} rounds of {args.seconds:g} s\n")
    print("| threads | waiting | neighbours | images/s | times the first of these | of itself without neighbours |")
    print("|---|---|---|---|---|---|")
    for one in trainers:
        base = next(each for each in trainers if each.threads == one.threads)
        for number, rates in one.rates.items():
            gains = divide_pairs(rates, base.rates[number])
            alone = divide_pairs(rates, one.rates[args.neighbours[0]])
            cells = (
                one.threads,
                one.policy,
                number,
                format_spread(rates, 0),
                format_spread(gains, 2),
                format_spread(alone, 2),
            )
            print("| " + " | ".join(map(str, cells)) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--neighbours", type=int, nargs="+", default=[0, 1, 3], help="processes that keep a core busy")
    parser.add_argument("--threads", type=int, nargs="+", default=[count_available_processors(), 1])
    parser.add_argument("--seconds", type=float, default=4, help="of each turn")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="of ehm train")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has ehm and the framework")
    parser.add_argument("--trainer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.trainer:
        train_when_told(args.device)
    else:
        print_table(measure_trainers(args), args)


if __name__ == "__main__":
    main()
