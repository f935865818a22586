"""How fast is a bundle? Each network on each provider, beside torch, in turns, so that all meet the same machine.

Shapes: B images.
"""

from __future__ import annotations

import json as json_module
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich import box
from rich.progress import Progress
from rich.table import Table

from ehm.console import PlainConsole, console
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import Manifest
from ehm.deploy.bundle.preprocessing import eval_transform, normalise_pixels
from ehm.deploy.predict.predictor import Predictor, row_cosines
from ehm.deploy.predict.registry import create_handler
from ehm.deploy.predict.runtime import installed
from ehm.errors import ConfigError, EhmError
from ehm.storage.writing import write_json

__all__ = ["Timing", "bench_export"]

_PAUSE = 0.02
"""Seconds between two runs: threads of the one before wait for work in a loop, and would take the next one's cores."""


@dataclass(frozen=True)
class Timing:
    """One way to compute a batch: milliseconds a batch, and how many times as fast as the baseline.

    ``ratio`` is the median over rounds, each against the baseline of the same round; a quarter of them is below
    ``ratio_low`` and a quarter above ``ratio_high``. ``cosine`` is the smallest to float32 in ONNX Runtime.
    """

    name: str
    batch: int
    median_ms: float
    p95_ms: float
    images_per_second: float
    ratio: float
    ratio_low: float
    ratio_high: float
    cosine: float


@dataclass(frozen=True)
class _Way:
    """``run`` computes ``output`` (B, ...) from the bundle's own input, or from normalised images (B, 3, H, W)."""

    name: str
    output: str
    normalised: bool
    run: Callable[[NDArray[Any]], NDArray[np.float32]]


def bench_export(
    bundle: str | Path,
    *,
    batch: Sequence[int] = (1, 8),
    device: str | Sequence[str] = (),
    images: Sequence[str | Path] = (),
    rounds: int = 20,
    threads: int = 0,
    processor_time: bool = False,
    json: bool = False,
    out: str | Path | None = None,
) -> list[Timing]:
    """Time the networks of a bundle, and torch where it and the checkpoint are still here; print a table, or JSON.

    ``batch`` are sizes of batches; ``device`` one or several of ``runtime.PROVIDERS``, by default all that are
    installed; ``images`` are files, by default smooth random pictures; ``threads`` are those of each network, by
    default one a core. ``processor_time`` counts that of all threads instead of the clock's, which other programs
    disturb little. With ``out`` the figures also go to ``out/bench.json``. Raises ConfigError for wrong numbers,
    ExportError for a damaged bundle, BackendError for a device that is not there.
    """
    for option, values in (("--batch", batch), ("--rounds", (rounds,))):
        if any(value < 1 for value in values):
            raise ConfigError(f"{option} {min(values)}: expected at least 1")
    opened = Bundle.open(bundle)
    notes = PlainConsole(stderr=True)
    devices = [device] if isinstance(device, str) else device or installed()
    reference, ways = _exported(opened, devices, threads)
    try:
        ways = _torch(opened.manifest, threads) + ways
    except EhmError as error:
        notes.print(f"torch is left out: {error}")
    pictures = [reference.decode(file) for file in images] or _pictures(max(batch))
    clock = time.process_time if processor_time else time.perf_counter
    timings: list[Timing] = []
    with Progress(console=notes, transient=True, disable=not notes.is_terminal) as progress:
        task = progress.add_task("bench", total=len(batch) * rounds)
        for size in batch:
            inputs = _inputs(reference, list(islice(cycle(pictures), size)))
            timings += _time(reference, ways, inputs, rounds, clock, lambda: progress.advance(task))
    report = {"bundle": str(bundle), "cores": os.cpu_count(), "timings": [asdict(timing) for timing in timings]}
    if json:
        print(json_module.dumps(report, indent=2))
    else:
        _print(timings, f"{bundle}: {rounds} round{'s' * (rounds != 1)}, ratios to {timings[0].name}")
    if out is not None:
        notes.print(f"figures in {write_json(Path(out) / 'bench.json', report)}")
    return timings


def _exported(bundle: Bundle, devices: Sequence[str], threads: int) -> tuple[Predictor, list[_Way]]:
    """The network in float32 on the first device, and every network on every device."""
    create_handler(bundle.manifest).require_batches(bundle.path, "ehm bench")
    manifest = bundle.manifest
    output = manifest.compared_output
    ways, predictors = [], []
    for device in devices:
        for precision in manifest.models:
            predictor = Predictor(bundle, device, precision, threads)
            run = partial(_run, predictor, output)
            ways.append(_Way(f"{predictor.provider.removesuffix('ExecutionProvider')} {precision}", output, False, run))
            predictors.append(predictor)
    return predictors[0], ways


def _run(predictor: Predictor, output: str, inputs: NDArray[Any]) -> NDArray[np.float32]:
    return predictor.run(inputs, [output])[output]


def _torch(manifest: Manifest, threads: int) -> list[_Way]:
    """Torch computes the logits of a classifier and the features of an encoder."""
    from ehm.deploy.bench_baselines import torch_rivals

    output = "logits" if manifest.labels else "features"
    if manifest.output(output) is None:
        raise EhmError(f"the bundle has no {output}, which torch computes")
    return [_Way(f"torch {name}", output, True, run) for name, run in torch_rivals(manifest, threads).items()]


def _pictures(count: int) -> list[Image.Image]:
    """Smooth random pictures of 300 x 300 pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (count, 12, 12, 3), np.uint8)
    return [Image.fromarray(pixels).resize((300, 300), Image.Resampling.BICUBIC) for pixels in noise]


def _inputs(reference: Predictor, pictures: Sequence[Image.Image]) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """What the bundle takes, and normalised images (B, 3, H, W)."""
    rule = reference.manifest.preprocessing
    if rule.in_graph:
        pictures = [picture.resize(pictures[0].size) for picture in pictures]  # what is one batch has one size
    transform = eval_transform(rule)
    pixels = np.stack([transform(picture) for picture in pictures])
    normalised = np.ascontiguousarray(normalise_pixels(pixels, rule))
    return np.stack([reference.prepare(picture) for picture in pictures]), normalised


def _time(
    reference: Predictor,
    ways: Sequence[_Way],
    inputs: tuple[NDArray[Any], NDArray[np.float32]],
    rounds: int,
    clock: Callable[[], float],
    advance: Callable[[], None],
) -> list[Timing]:
    """One run of each in every round; the first of ``ways`` is the baseline."""
    expected = reference.run(inputs[0])
    cosines = []
    for way in ways:  # the first run allocates, and compiles where there is a compiler
        cosines.append(float(row_cosines(expected[way.output], way.run(inputs[way.normalised])).min()))
    seconds = np.empty((rounds, len(ways)))
    for row in seconds:
        for column, way in enumerate(ways):
            time.sleep(_PAUSE)
            start = clock()
            way.run(inputs[way.normalised])
            row[column] = clock() - start
        advance()
    return [
        _timing(way.name, len(inputs[0]), column, seconds[:, 0] / column, similar)
        for way, column, similar in zip(ways, seconds.T, cosines, strict=True)
    ]


def _timing(name: str, batch: int, seconds: NDArray[np.float64], ratios: NDArray[np.float64], similar: float) -> Timing:
    median, p95 = (float(value) for value in np.quantile(seconds, (0.5, 0.95)))
    low, ratio, high = (float(value) for value in np.quantile(ratios, (0.25, 0.5, 0.75)))
    return Timing(name, batch, median * 1000, p95 * 1000, batch / median, ratio, low, high, similar)


def _print(timings: Sequence[Timing], title: str) -> None:
    table = Table(title=title, box=box.SIMPLE, padding=0, pad_edge=False)
    for name in ("batch", "network", "ms", "p95", "images/s", "ratio (quartiles)", "cosine"):
        table.add_column(name, justify="left" if name == "network" else "right", no_wrap=True)
    for timing in timings:
        table.add_row(
            str(timing.batch),
            timing.name,
            f"{timing.median_ms:.1f}",
            f"{timing.p95_ms:.1f}",
            f"{timing.images_per_second:.1f}",
            f"{timing.ratio:.2f} ({timing.ratio_low:.2f}-{timing.ratio_high:.2f})",
            f"{timing.cosine:.6f}",
        )
    console.print(table)
