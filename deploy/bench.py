"""The speed of a bundle: each network on each provider, beside torch, in turns, so that all meet the same machine.

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
from rich.table import Table

from ehm.console import PlainConsole, console
from ehm.data.channel_images import round_to_type
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import Manifest, Preprocessing
from ehm.deploy.bundle.preprocessing import create_eval_transform, normalise_pixels
from ehm.deploy.predict.handler import Outputs
from ehm.deploy.predict.predictor import Predictor
from ehm.deploy.predict.runtime import list_installed_devices
from ehm.deploy.predict.sessions import list_precisions
from ehm.errors import ConfigError, EhmError
from ehm.progress_bar import create_progress
from ehm.report.card import Card, CardTable, Cell, render_card
from ehm.storage.writing import write_json

__all__ = ["Timing", "bench_export"]

_PAUSE = 0.02
"""Seconds between two runs: threads of the one before wait for work in a loop, and would take the next one's cores."""


@dataclass(frozen=True)
class Timing:
    """The speed of one contestant: milliseconds a batch, and how many times as fast as the baseline.

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


class TimingList(list[Timing]):
    """A list of timings, which a notebook shows as a table; bars compare the images a second."""

    def _repr_html_(self) -> str:
        fastest = max((timing.images_per_second for timing in self), default=1.0)
        rows = []
        for timing in self:
            speed = Cell(f"{timing.images_per_second:.1f}", timing.images_per_second / fastest)
            texts = (str(timing.batch), f"{timing.median_ms:.1f}", f"{timing.p95_ms:.1f}")
            ratio = f"{timing.ratio:.2f} ({timing.ratio_low:.2f} to {timing.ratio_high:.2f})"
            rows.append([Cell(timing.name), *map(Cell, texts), speed, Cell(ratio), Cell(f"{timing.cosine:.6f}")])
        headings = ["network", "batch", "ms", "p95", "images/s", "ratio (quartiles)", "cosine"]
        return render_card(Card(kind="Speed", tables=[CardTable(headings, rows)]))


@dataclass(frozen=True)
class _Contestant:
    """A way to compute outputs from the bundle's own input, or from ``normalised`` images (B, 3, H, W)."""

    name: str
    normalised: bool
    run: Callable[[NDArray[Any]], Outputs]


@dataclass(frozen=True)
class _Inputs:
    """A batch as the bundle takes it, and as ``normalised`` images (B, 3, H, W)."""

    own: NDArray[Any]
    normalised: NDArray[np.float32]

    def for_contestant(self, contestant: _Contestant) -> NDArray[Any]:
        """Return the batch in the form that a contestant takes."""
        return self.normalised if contestant.normalised else self.own


def bench_export(
    bundle: str | Path,
    *,
    batch: Sequence[int] = (),
    device: str | Sequence[str] = (),
    images: Sequence[str | Path] = (),
    rounds: int = 20,
    threads: int = 0,
    processor_time: bool = False,
    json: bool = False,
    out: str | Path | None = None,
) -> list[Timing]:
    """Time the networks of a bundle, and torch if it and the checkpoint are still here; print a table, or JSON.

    ``batch`` are sizes of batches, by default 1 and 8, or 1 if the network takes no more; ``device`` one or several of
    ``runtime.PROVIDERS``, by default all that are installed, or ``om``; ``images`` are files, by default smooth random
    pictures; ``threads`` are those of each network, by default one a core. ``processor_time`` counts that of all
    threads instead of the clock's, which other programs disturb little. With ``out`` the figures also go to
    ``out/bench.json``. Raises ConfigError for wrong numbers, ExportError for a damaged bundle, BackendError for a
    device that is not there.
    """
    for option, values in (("--batch", batch), ("--rounds", (rounds,))):
        if min(values, default=1) < 1:
            raise ConfigError(f"{option} {min(values)}: expected at least 1")
    opened = Bundle.open(bundle)
    notes = PlainConsole(stderr=True, for_messages=True)
    devices = [device] if isinstance(device, str) else device or list_installed_devices()
    # the network in float32 is what all others are compared with
    reference, contestants = _load_exported(opened, devices, threads)
    try:
        # torch comes first: it is the baseline
        contestants = _load_torch(opened.manifest, threads) + contestants
    except EhmError as error:
        notes.print(f"torch is left out: {error}")
    batch = _choose_batches(batch, reference)
    pictures = [reference.decode(file) for file in images]
    if not pictures:
        pictures = _draw_pictures(max(batch), reference.manifest.preprocessing)
    clock = time.process_time if processor_time else time.perf_counter
    timings = TimingList()
    with create_progress(printer=notes, transient=True) as progress:
        task = progress.add_task("bench", total=len(batch) * rounds)
        for size in batch:
            # a few files fill a batch of any size by taking turns
            inputs = _prepare_inputs(reference, list(islice(cycle(pictures), size)))
            timings += _time_rounds(reference, contestants, inputs, rounds, clock, lambda: progress.advance(task))
    report = {"bundle": str(bundle), "cores": os.cpu_count(), "timings": [asdict(timing) for timing in timings]}
    if json:
        print(json_module.dumps(report, indent=2))
    else:
        _print_table(timings, f"{bundle}: {rounds} round{'s' * (rounds != 1)}, ratios to {timings[0].name}")
    if out is not None:
        notes.print(f"figures in {write_json(Path(out) / 'bench.json', report)}")
    return timings


def _load_exported(bundle: Bundle, devices: Sequence[str], threads: int) -> tuple[Predictor, list[_Contestant]]:
    """Return the network in float32 on the first device, and every network on every device."""
    manifest = bundle.manifest
    contestants = []
    predictors = []
    for device in devices:
        for precision in list_precisions(manifest, device):
            predictor = Predictor(bundle, device, precision, threads)
            name = f"{predictor.provider.removesuffix('ExecutionProvider')} {predictor.network}"
            contestants.append(_Contestant(name, False, partial(_run_predictor, predictor)))
            predictors.append(predictor)
    return predictors[0], contestants


def _choose_batches(batch: Sequence[int], reference: Predictor) -> Sequence[int]:
    """Return the sizes of batches to time; raises ConfigError for one that the network does not take."""
    if reference.handler.takes_batches:
        return batch or (1, 8)
    if set(batch) - {1}:
        raise ConfigError(f"--batch {max(batch)}: {reference.bundle.path} takes one image at a time; leave it out")
    return (1,)


def _run_predictor(predictor: Predictor, inputs: NDArray[Any]) -> Outputs:
    """Return what is compared of the outputs, and of several the first one only: the others need not be computed."""
    handler = predictor.handler
    names = handler.measured_outputs[:1] if handler.takes_batches else handler.measured_outputs
    return predictor.run(inputs, names)


def _load_torch(manifest: Manifest, threads: int) -> list[_Contestant]:
    """Return torch's ways to compute the logits of a classifier or the features of an encoder."""
    from ehm.deploy.bench_baselines import load_torch_baselines

    output = "logits" if manifest.labels else "features"
    if manifest.output(output) is None:
        raise EhmError(f"the bundle has no {output}, which torch computes")
    contestants = []
    for name, run in load_torch_baselines(manifest, output, threads).items():
        contestants.append(_Contestant(f"torch {name}", True, partial(_name_output, run, output)))
    return contestants


def _name_output(run: Callable[[NDArray[Any]], NDArray[np.float32]], name: str, images: NDArray[Any]) -> Outputs:
    return {name: run(images)}


def _draw_pictures(count: int, rule: Preprocessing) -> list[Any]:
    """Return smooth random pictures of 300 x 300 pixels, or noise of that size for images that are no photographs."""
    pixels_of_model = rule.pixels
    if not pixels_of_model.is_rgb:
        shape = (count, 300, 300, pixels_of_model.count)
        noise_in_channels = np.random.default_rng(0).random(shape, np.float32) * pixels_of_model.white
        return list(round_to_type(noise_in_channels, pixels_of_model.dtype))
    noise = np.random.default_rng(0).integers(0, 256, (count, 12, 12, 3), np.uint8)
    pictures = []
    for pixels in noise:
        pictures.append(Image.fromarray(pixels).resize((300, 300), Image.Resampling.BICUBIC))
    return pictures


def _prepare_inputs(reference: Predictor, pictures: Sequence[Any]) -> _Inputs:
    """Turn pictures into a batch."""
    rule = reference.manifest.preprocessing
    if rule.in_graph and rule.pixels.is_rgb:
        # images of one batch have one size
        pictures = [picture.resize(pictures[0].size) for picture in pictures]
    transform = create_eval_transform(rule)
    pixels = np.stack([transform(picture) for picture in pictures])
    # in the form of the bundle itself, which may do all of the above in its graph
    own = np.stack([reference.handler.prepare_sample(reference, picture) for picture in pictures])
    return _Inputs(own, np.ascontiguousarray(normalise_pixels(pixels, rule)))


def _time_rounds(
    reference: Predictor,
    contestants: Sequence[_Contestant],
    inputs: _Inputs,
    rounds: int,
    clock: Callable[[], float],
    advance: Callable[[], None],
) -> list[Timing]:
    """Run each contestant once in every round; the first is the baseline."""
    expected = reference.run(inputs.own)
    cosines = []
    for contestant in contestants:  # the first run allocates, and compiles if there is a compiler
        found = contestant.run(inputs.for_contestant(contestant))
        cosines.append(float(reference.handler.compare(expected, found).cosines.min()))
    seconds = np.empty((rounds, len(contestants)))
    for row in seconds:
        for column, contestant in enumerate(contestants):
            # not counted: see the constant
            time.sleep(_PAUSE)
            start = clock()
            contestant.run(inputs.for_contestant(contestant))
            row[column] = clock() - start
        advance()
    timings = []
    for contestant, own, cosine in zip(contestants, seconds.T, cosines, strict=True):
        timings.append(_summarise(contestant.name, len(inputs.own), own, seconds[:, 0] / own, cosine))
    return timings


def _summarise(
    name: str, batch: int, seconds: NDArray[np.float64], ratios: NDArray[np.float64], cosine: float
) -> Timing:
    """Return the quantiles of a contestant's seconds and of its ratios to the baseline (rounds,)."""
    median, p95 = np.quantile(seconds, (0.5, 0.95)).tolist()
    low, ratio, high = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
    return Timing(name, batch, median * 1000, p95 * 1000, batch / median, ratio, low, high, cosine)


def _print_table(timings: Sequence[Timing], title: str) -> None:
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
