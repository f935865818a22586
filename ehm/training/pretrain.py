"""Pretraining with masked images, written once against the backend protocol: read it from top to bottom.

A run's folder holds ``config.yaml``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/`` and, at the end,
``encoder.safetensors``, which ``timm.create_model`` loads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import save_file

from ehm import backends
from ehm.backends.base import Backend, Learner
from ehm.config import TrainConfig
from ehm.config.inputs import InputSpec
from ehm.console import console
from ehm.data import Loader, Source, TrainTransform, open_source
from ehm.data.decoding.depth_notes import describe_depths
from ehm.errors import CheckpointError
from ehm.masking import make_masker
from ehm.models.encoder_file import encoder_metadata
from ehm.models.fitting import keep_encoder
from ehm.storage.arrays import split_average
from ehm.storage.checkpoint import open_checkpoint, open_to_resume
from ehm.storage.reading import hash_file
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
    mean,
    on,
    save,
    say_broken,
    store,
)
from ehm.training.schedule import learning_rate_at
from ehm.training.training_data import identify_training_data

__all__ = ["DEFAULT_CONFIG", "TrainResult", "train"]

DEFAULT_CONFIG = "elpv/pretrain"


@dataclass(frozen=True)
class TrainResult:
    """Where a run's results are, and how it ended."""

    out: Path
    checkpoint: Path
    encoder: Path | None
    steps: int
    loss: float


def train(
    config: TrainConfig | str | Path | None = None,
    *,
    device: str = "auto",
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
) -> TrainResult:
    """Pretrain an encoder as ``config`` says (a file, the name of a shipped one, or an object; ELPV's if left out).

    ``overrides`` are ``key=value`` strings, as ``--set`` takes them. With ``resume`` the newest complete checkpoint in
    ``out`` is continued, with its own configuration unless another is given; a run that was stopped at any moment ends
    with the weights of one that never was (same machine, same number of threads). Raises EhmError on bad input and
    TrainingError where the loss is not finite.
    """
    folder = Path(out) if out is not None else Path("runs") / "pretrain"
    settings, start = begin(TrainConfig, DEFAULT_CONFIG, config, overrides, folder, resume)
    backend = backends.get(device)
    agree(backend.processes, start)
    with explain_stop(folder):
        return _run(settings, backend, folder, start)


def _run(config: TrainConfig, backend: Backend, folder: Path, start: Path | None) -> TrainResult:
    """The loop."""
    source = open_source(config.data, "train")
    data, optim, run = config.data, config.optim, config.run
    transform = TrainTransform(
        config.image_size, data.crop_scale, data.flip, data.color_jitter, mean=data.mean, std=data.std
    )
    loader = Loader(
        source,
        transform,
        batch_size=optim.batch_size // config.mask.views,
        seed=run.seed,
        shuffle=True,
        drop_last=True,
        workers=data.workers,
        strict=data.strict,
        rank=backend.processes.rank,
        world_size=backend.processes.size,
    )
    plan = plan_run(optim, run, loader.steps_per_epoch)
    resumed = start is not None
    notes = check_plan(plan, optim, run, len(source), views=config.mask.views, measures=False, resumed=resumed)
    training_data = identify_training_data(source, None, data.workers, backend.processes)

    build = backend.describe_device().hierarchy if config.mask.build == "auto" else config.mask.build
    masker = make_masker(config.masking, config.masks, config.units, build, backend.processes.local_size)
    learner = backend.create_learner(config if start is None else _without_init(config))
    first, stored, tokenizer = 0, config.model_dump(mode="json"), _tokenizer(config)
    if start is not None:
        check_resumed_data(start, training_data, None, data.source)
        opened = open_to_resume(start)
        if opened.metadata.get("tokenizer") not in (None, tokenizer.get("tokenizer")):
            raise CheckpointError(
                f"model.tokenizer {config.model.tokenizer}: is not the one that this run began with, and its tokens "
                "mean other things; give that one, or start a new run"
            )
        learner.load(opened.state)
        first = int(opened.metadata["step"])
    _announce(config, backend, [*learner.notes, *notes], source, plan, folder, start)

    leads = backend.processes.rank == 0
    if leads:
        store(config, folder)
    saved, loss, pending = start, math.nan, Metrics()
    with loader, RunLog(folder, plan.last, first, "pretrain", run.tensorboard, silent=not leads) as log:
        clock, images = time.perf_counter(), 0
        for step, batch in enumerate(loader.batches(first, plan.last), start=first):
            progress = step / plan.total  # p = t / T of Eq. 14, with fractional epochs
            prepared = learner.prepare_batch(batch.images)
            mask, figures = masker(prepared, progress, (run.seed, step), batch.first)
            lr = learning_rate_at(optim, step, loader.steps_per_epoch)
            done, images = step + 1, images + batch.total
            pending.add(done, learner.train_step(prepared, mask, lr, optim.weight_decay))
            log.advance(done)
            due = done % plan.save_every == 0 or done == plan.last
            if due or done % run.log_every == 0:
                values = pending.read(saved)
                loss, seconds = values["loss"], time.perf_counter() - clock
                speed = {"epoch": done / loader.steps_per_epoch, "lr": lr, "images_per_second": images / seconds}
                log.log(done, {**values, **speed, **mean(figures, backend.processes)})
                clock, images = time.perf_counter(), 0
            if due:
                said = describe_run("pretrain", stored, backend, done, loader.steps_per_epoch) | tokenizer
                said["data"] = training_data.to_json()
                saved = save(folder / "checkpoints", learner, said, run.keep, backend.processes)

    assert saved is not None  # a run has at least one step, and its last one is saved
    encoder = _write_encoder(folder, learner, config, leads) if plan.last == plan.total else None
    _report(folder, all_broken(loader.unreadable, backend.processes), saved, encoder)
    return TrainResult(folder, saved, encoder, plan.last, loss)


def _without_init(config: TrainConfig) -> TrainConfig:
    """A resumed run begins with its checkpoint alone."""
    return config.model_copy(update={"model": config.model.model_copy(update={"init": None})})


def _tokenizer(config: TrainConfig) -> dict[str, str]:
    """SHA-256 of the weights that BEiT's visual tokens come from, as checkpoints keep it; nothing without them."""
    if config.model.tokenizer is None:
        return {}
    path = Path(config.model.tokenizer)
    return {"tokenizer": hash_file(path) if path.is_file() else open_checkpoint(path).model_sha256}


def _write_encoder(folder: Path, learner: Learner, config: TrainConfig, leads: bool) -> Path:
    """Write ``encoder.safetensors`` (and ``encoder_ema``, if there is an average): timm's names, the encoder alone.

    Its metadata say what the encoder is and how its images are prepared (:mod:`ehm.models.encoder_file`).
    """
    metadata = encoder_metadata(config.spec, InputSpec(config.data.mean, config.data.std))
    state = learner.state()
    _, averaged = split_average(state.optimizer)
    for name, arrays in (("encoder", state.model), ("encoder_ema", averaged)):
        kept = keep_encoder(arrays, config.spec.blocks)
        if kept and leads:
            with replace_file(folder / f"{name}.safetensors") as temporary:
                save_file(kept, temporary, metadata)
    return folder / "encoder.safetensors"


def _announce(
    config: TrainConfig,
    backend: Backend,
    notes: Sequence[str],
    source: Source,
    plan: RunPlan,
    folder: Path,
    start: Path | None,
) -> None:
    spec, optim, unit = config.spec, config.optim, config.unit
    views = f" ({config.mask.views} masks an image)" if config.mask.views > 1 else ""
    units = "patches" if unit == config.patch_size else f"units of {unit} pixels"
    console.print(
        f"Pretraining {config.encoder} ({spec.width} wide, {spec.blocks} blocks, {spec.image_size[0]} x "
        f"{spec.image_size[1]} pixels, {math.prod(config.units)} {units}) with {config.objective} and {config.masking} "
        f"masks ({config.masks.ratio:.0%} hidden)"
    )
    console.print(
        f"  on {config.data.source}: {len(source):,} images, {plan.describe(optim)}, "
        f"batch {optim.batch_size}{views}, learning rate {optim.lr:.2e}; {on(backend)}"
    )
    for note in (*source.notes, *describe_depths(source), *notes):
        console.print(f"  {note}")
    console.print(f"  into {folder}" + (f", continuing {start.name}" if start else ""))
    if start is None:
        return
    print_changes(config, start, backend)
    if start.name >= f"step-{plan.last:08d}":
        stop = f", up to run.max_steps {config.run.max_steps}" if config.run.max_steps else ""
        console.print(f"  all of its steps are done already{stop}")


def _report(folder: Path, broken: Mapping[str, str], saved: Path, encoder: Path | None) -> None:
    say_broken(broken)
    console.print(f"Checkpoint: {saved}")
    if encoder is not None:
        console.print(f"Encoder for timm: {encoder}")
    else:
        console.print("Stopped by run.max_steps: --resume --set run.max_steps=null goes on, to encoder.safetensors")
    console.print(f"Curves: {folder / 'metrics.jsonl'} (tensorboard --logdir {folder})")
