"""``ehm tokenizer train``: a discrete VAE on unlabelled images, whose codes are BEiT's visual tokens.

A run's folder holds ``config.yaml``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/`` and, at the end,
``metrics.json`` and ``reconstructions.png``. Shapes: B images of H x W pixels, N tokens of each.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ehm import backends
from ehm.analysis.draw import enlarge_patches
from ehm.analysis.mosaic import Tile, compose_mosaic
from ehm.backends.base import Backend, TokenizerLearner
from ehm.config import TokenizerConfig
from ehm.console import console
from ehm.data import EvalTransform, Loader, Source, TrainTransform, open_source
from ehm.data.decoding.depth_notes import describe_depths
from ehm.storage.checkpoint import open_to_resume
from ehm.storage.writing import replace_file
from ehm.training.plan import RunPlan, check_plan, plan_run
from ehm.training.resume import check_resumed_data, print_changes
from ehm.training.runlog import RunLog
from ehm.training.runs import (
    Metrics,
    agree,
    all_broken,
    begin,
    describe_run,
    explain_stop,
    on,
    save,
    say_broken,
    store,
    write_json,
)
from ehm.training.schedule import learning_rate_at
from ehm.training.training_data import identify_training_data

__all__ = ["DEFAULT_CONFIG", "Quality", "TokenizerResult", "train_tokenizer"]

DEFAULT_CONFIG = "elpv/tokenizer"
MEASURED = 512
"""Images that a tokenizer is measured on, at most."""
SHOWN = 8


@dataclass(frozen=True)
class Quality:
    """What the tokens of ``images`` images keep of them, at their centres.

    ``mse`` is the mean squared error of pixels in [0, 1] reconstructed from tokens, ``mean_mse`` that of each image's
    mean colour. ``codes_used`` is the share of the vocabulary that occurs, ``perplexity`` the exponential of the
    entropy of the codes' distribution.
    """

    images: int
    mse: float
    mean_mse: float
    codes_used: float
    perplexity: float


@dataclass(frozen=True)
class TokenizerResult:
    """Where a run's results are, and what they are worth."""

    out: Path
    checkpoint: Path
    quality: Quality


def train_tokenizer(
    config: TokenizerConfig | str | Path | None = None,
    *,
    device: str = "auto",
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
) -> TokenizerResult:
    """Train a tokenizer as ``config`` says (a file, the name of a shipped one, or an object; ELPV's if left out).

    ``overrides`` are ``key=value`` strings, as ``--set`` takes them. With ``resume`` the newest complete checkpoint in
    ``out`` is continued and ends with the weights of a run that was never stopped. Raises EhmError on bad input and
    TrainingError where the loss is not finite.
    """
    folder = Path(out) if out is not None else Path("runs") / "tokenizer"
    settings, start = begin(TokenizerConfig, DEFAULT_CONFIG, config, overrides, folder, resume)
    backend = backends.get(device)
    agree(backend.processes, start)
    with explain_stop(folder):
        return _run(settings, backend, folder, start)


def _run(config: TokenizerConfig, backend: Backend, folder: Path, start: Path | None) -> TokenizerResult:
    """The loop."""
    source, processes = open_source(config.data, "train"), backend.processes
    data, optim, run = config.data, config.optim, config.run
    loader = Loader(
        source,
        TrainTransform(config.image_size, data.crop_scale, data.flip, data.color_jitter),
        batch_size=optim.batch_size,
        seed=run.seed,
        shuffle=True,
        drop_last=True,
        workers=data.workers,
        strict=data.strict,
        rank=processes.rank,
        world_size=processes.size,
    )
    plan = plan_run(optim, run, loader.steps_per_epoch)
    notes = check_plan(plan, optim, run, len(source), measures=False, resumed=start is not None)
    training_data = identify_training_data(source, None, data.workers, processes)
    tokenizer = backend.create_tokenizer(config)
    first = 0
    if start is not None:
        check_resumed_data(start, training_data, None, data.source)
        opened = open_to_resume(start)
        tokenizer.load(opened.state)
        first = int(opened.metadata["step"])
    _announce(config, backend, notes, source, plan, folder, start)
    leads = processes.rank == 0
    if leads:
        store(config, folder)

    saved, pending = start, Metrics()
    with loader, RunLog(folder, plan.last, first, "tokenizer", run.tensorboard, silent=not leads) as log:
        clock, images = time.perf_counter(), 0
        for step, batch in enumerate(loader.batches(first, plan.last), start=first):
            temperature = cooled(config.temperature, step / plan.total)
            lr = learning_rate_at(optim, step, plan.steps_per_epoch)
            done, images = step + 1, images + batch.total
            pending.add(done, tokenizer.train_step(batch.images, temperature, lr, optim.weight_decay))
            log.advance(done)
            due = done % plan.save_every == 0 or done == plan.last
            if due or done % run.log_every == 0:
                speed = images / (time.perf_counter() - clock)
                settings = {
                    "temperature": temperature,
                    "epoch": done / plan.steps_per_epoch,
                    "lr": lr,
                    "images_per_second": speed,
                }
                log.log(done, {**pending.read(saved), **settings})
                clock, images = time.perf_counter(), 0
            if due:
                said = describe_run("tokenizer", config.model_dump(mode="json"), backend, done, plan.steps_per_epoch)
                said["data"] = training_data.to_json()
                saved = save(folder / "checkpoints", tokenizer, said, run.keep, processes)

    assert saved is not None  # a run has at least one step, and its last one is saved
    quality = _measure(tokenizer, source, config, folder, leads)
    say_broken(all_broken(loader.unreadable, processes))
    _report(folder, saved, quality, leads)
    return TokenizerResult(folder, saved, quality)


def cooled(temperature: tuple[float, float], progress: float) -> float:
    """The Gumbel-softmax's temperature at ``progress`` in [0, 1]: from the first to the second on half a cosine."""
    first, last = temperature
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2


def _measure(
    tokenizer: TokenizerLearner, source: Source, config: TokenizerConfig, folder: Path, leads: bool
) -> Quality:
    """Tokenize images spread over the source, reconstruct them, and draw the first few."""
    chosen = np.unique(np.linspace(0, len(source) - 1, min(len(source), MEASURED)).astype(np.int64))
    loader = Loader(
        source,
        EvalTransform(config.image_size),
        batch_size=min(64, config.optim.batch_size),
        seed=0,
        shuffle=False,
        drop_last=False,
        workers=0,
        subset=chosen,
    )
    errors, spreads = [], []
    counts = np.zeros(config.vocabulary, np.int64)
    for number, batch in enumerate(loader.batches(0, loader.steps_per_epoch)):
        seen, tokens = tokenizer.reconstruct_images(batch.images)
        pixels = batch.images.astype(np.float32) / 255
        errors.append(((seen - pixels) ** 2).mean(axis=(1, 2, 3)))
        spreads.append(pixels.var(axis=(1, 2)).mean(axis=1))
        counts += np.bincount(tokens.ravel(), minlength=config.vocabulary)
        if number == 0 and leads:
            _draw(batch.images[:SHOWN], seen[:SHOWN], errors[0], folder)
    shares = counts[counts > 0] / counts.sum()
    return Quality(
        len(chosen),
        float(np.concatenate(errors).mean()),
        float(np.concatenate(spreads).mean()),
        float((counts > 0).mean()),
        float(np.exp(-(shares * np.log(shares)).sum())),
    )


def _draw(images: NDArray[np.uint8], seen: NDArray[np.float32], errors: NDArray[np.float32], folder: Path) -> None:
    """``reconstructions.png``: originals over what their tokens keep of them."""
    cell = max(1, 160 // images.shape[2])
    above = [Tile(enlarge_patches(image, cell)) for image in images]
    below = [
        Tile(enlarge_patches((255 * image).round().astype(np.uint8), cell), (f"MSE {error:.4f}",))
        for image, error in zip(seen, errors, strict=False)
    ]
    page = compose_mosaic(
        "Images, and what their tokens keep of them", [f"Tokenizer: {folder}"], [""] * len(images), [above, below]
    )
    with replace_file(folder / "reconstructions.png") as temporary:
        page.save(temporary, format="PNG")


def _announce(
    config: TokenizerConfig,
    backend: Backend,
    notes: Sequence[str],
    source: Source,
    plan: RunPlan,
    folder: Path,
    start: Path | None,
) -> None:
    optim, (height, width) = config.optim, config.image_size
    places = (height // config.stride) * (width // config.stride)
    console.print(
        f"Training a tokenizer: {config.vocabulary:,} codes, {config.width} wide, one for {config.stride} x "
        f"{config.stride} pixels ({places} tokens for {height} x {width} pixels)"
    )
    console.print(
        f"  on {config.data.source}: {len(source):,} images, {plan.describe(optim)}, "
        f"batch {optim.batch_size}, learning rate {optim.lr:.2e}; {on(backend)}"
    )
    for note in (*source.notes, *describe_depths(source), *notes):
        console.print(f"  {note}")
    console.print(f"  into {folder}" + (f", continuing {start.name}" if start else ""))
    if start is not None:
        print_changes(config, start, backend)


def _report(folder: Path, saved: Path, quality: Quality, leads: bool) -> None:
    if leads:
        write_json(folder / "metrics.json", {"checkpoint": str(saved), **asdict(quality)})
    console.print(
        f"Of {quality.images:,} images, tokens leave a squared error of {quality.mse:.4f} (their mean colours "
        f"{quality.mean_mse:.4f}); codes in use: {quality.codes_used:.0%}, perplexity {quality.perplexity:.0f}"
    )
    console.print(f"Checkpoint: {saved}")
    console.print(f"Pictures: {folder / 'reconstructions.png'}; figures: {folder / 'metrics.json'}")
    console.print(f"To use it: ehm train --set objective=beit --set model.tokenizer={folder}")
