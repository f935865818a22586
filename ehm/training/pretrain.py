"""Pretraining with masked images, written once against the backend protocol: read it from top to bottom.

A run's folder holds ``config.yaml``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/``, ``best/`` (the
checkpoint with the best features), ``pictures/`` and, at the end, ``report.html`` and ``encoder.safetensors``, beside
``encoder/`` and ``encoder_hf/``, which timm and transformers load by name. A step whose loss is not finite lies in
``broken/``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import save_file

from ehm.backends.base import Learner
from ehm.config import TrainConfig
from ehm.config.objectives import OBJECTIVES
from ehm.console import console
from ehm.data import Source
from ehm.errors import CheckpointError, ConfigError, NotFiniteError
from ehm.models.encoder_file import encoder_metadata
from ehm.models.fitting import keep_encoder
from ehm.models.weights import Provenance, Weights
from ehm.report.run_card import render_run_card
from ehm.report.write import write_final_report
from ehm.storage.arrays import split_average
from ehm.storage.checkpoint import Checkpoint, checkpoint_path, open_checkpoint
from ehm.storage.reading import hash_file
from ehm.storage.writing import replace_file
from ehm.training.broken import keep_broken_step
from ehm.training.encoder_folders import write_run_folders
from ehm.training.pictures import PICTURES_FOLDER, open_pictures
from ehm.training.plan import RunPlan, check_plan, plan_run
from ehm.training.pretraining_setup import (
    choose_first_weights,
    create_masker,
    open_images,
    open_validation_part,
    take_encoder,
)
from ehm.training.progress import RunMeter, average_over_processes
from ehm.training.replay import replay_step
from ehm.training.resume import check_resumed_data
from ehm.training.run import Run, open_run, print_unreadable
from ehm.training.steps import MaskedSteps
from ehm.training.training_data import identify_training_data
from ehm.training.watch import BEST_FOLDER, open_watch

__all__ = ["DEFAULT_CONFIG", "TrainResult", "train"]

DEFAULT_CONFIG = "elpv/pretrain"
DEFAULT_OUT = Path("runs/pretrain")


@dataclass(frozen=True)
class TrainResult:
    """The files that a run has written, and its last step and loss; ``encoder`` is None if the run is not complete."""

    out: Path
    checkpoint: Path
    encoder: Path | None
    steps: int
    loss: float

    def _repr_html_(self) -> str | None:
        return render_run_card(self.out)


def train(
    config: TrainConfig | str | Path | None = None,
    *,
    device: str = "auto",
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
    replay: str | Path | None = None,
) -> TrainResult:
    """Pretrain an encoder as ``config`` says (a file, the name of a shipped one, or an object; ELPV's if left out).

    ``overrides`` are ``key=value`` strings, as ``--set`` takes them. With ``resume`` the newest complete checkpoint in
    ``out`` is continued, with its own configuration unless another is given; a run that was stopped at any moment ends
    with the weights of one that never was (on a CPU: same machine, same number of threads).

    A step whose loss is not finite is kept in ``out``; ``replay`` is its folder, and takes that step again instead of
    training: ``overrides`` may then try other settings. Raises EhmError on bad input and NotFiniteError if the loss is
    not finite.
    """
    if replay is not None:
        if config is not None or out is not None or resume:
            raise ConfigError("--replay: the folder says all there is; leave out --config, --out and --resume")
        kept, loss = replay_step(replay, device, overrides)
        return TrainResult(Path(replay), kept.before.folder, None, int(kept.facts["step"]), loss)
    folder = Path(out or DEFAULT_OUT)
    run = open_run(TrainConfig, DEFAULT_CONFIG, config, overrides, device, folder, resume=resume)
    with run.explain_write_errors():
        run, weights, notes = take_encoder(run)
        try:
            return _pretrain(run, weights, notes)
        except NotFiniteError as error:
            # without its traceback, which would keep the learner in memory beside the one that takes the step again
            broken = error.with_traceback(None)
        raise keep_broken_step(run, weights, broken)


def _pretrain(run: Run[TrainConfig], weights: Weights | None, notes: tuple[str, ...]) -> TrainResult:
    config = run.config
    data = config.data
    optim = config.optim
    views = config.mask.views
    processes = run.processes

    source, loader = open_images(config, processes)
    plan = plan_run(optim, config.run, loader.steps_per_epoch)
    is_resumed = run.start is not None
    # before the learner, so that a mistake costs seconds
    warnings = check_plan(plan, optim, config.run, len(source), views=views, measures=False, resumed=is_resumed)
    held_out = open_validation_part(config, source)
    watch = open_watch(run, source, held_out, plan)
    training_data = identify_training_data(source, None, data.workers, processes)

    learner = run.backend.create_learner(choose_first_weights(run), weights)
    companions = {**_hash_tokenizer(config), **_hash_teacher(config, weights)}
    first = 0
    if run.start is not None:
        check_resumed_data(run.start, training_data, None, data.source)
        _check_companions(config, run.start, companions)
        learner.load(run.start.take_state())
        first = int(run.start.metadata["step"])
    notes = (*learner.notes, *notes)
    if is_resumed and "teacher" in companions:
        # what the weights were is true of the teacher alone, as the model's own come from the checkpoint
        notes = (f"predicts the features of {config.model.init} as before",)
    pictures = open_pictures(run, learner, plan, source, held_out)
    _print_start(run, source, plan, [*notes, *warnings, *watch.notes])
    run.write_config()

    saved = run.start_path
    loss = math.nan
    steps = MaskedSteps(config, plan, learner, create_masker(run))
    meter = RunMeter(run, plan)
    with loader, run.open_log(plan.last, first, "pretrain") as log:
        batches = steps.prepare_ahead(loader.batches(first, plan.last))
        for step, (batch, prepared) in enumerate(meter.time_batches(batches), start=first):
            masked = steps.mask_batch(step, batch, prepared, meter.time_masks)
            rates = steps.rates_at(step)
            metrics = steps.take(masked, rates)

            done = step + 1
            meter.add_step(done, batch, {**metrics, "lr": rates.lr}, masked.problems)
            log.advance(done)
            is_watch_due = watch.is_due(done)
            is_best = False
            if is_watch_due or plan.is_log_due(done) or plan.is_save_due(done):
                values = meter.read_values(saved) | average_over_processes(masked.masks.read_figures(), processes)
                loss = values["loss"]
                if is_watch_due:
                    figures, is_best = watch.measure(learner, done)
                    values |= figures
                    meter.restart_clock()  # to measure is no part of the speed of training
                log.log(done, values)
            if is_best or plan.is_save_due(done):
                metadata = run.make_metadata("pretrain", done, plan) | companions
                metadata |= {"data": training_data.to_json(), "watch": watch.to_json()}
                if is_best:
                    run.save_checkpoint(learner, metadata, subfolder=BEST_FOLDER, keep=1)
                    meter.restart_clock()
                if plan.is_save_due(done):
                    saved = run.save_checkpoint(learner, metadata)
            if pictures.is_due(done):
                meter.check_finite(saved)  # of weights that are not finite, no masks can be drawn
                log.add_picture(done, "reconstruction", pictures.draw(done))
                meter.restart_clock()  # to draw is no part of the speed of training

    assert saved is not None  # a run has at least one step, and its last one is saved
    encoder = None
    if plan.last == plan.total:  # a run that stops early has no final encoder, and goes on by --resume
        encoder = _write_encoder(run, learner, saved)
    print_unreadable(loader.unreadable | watch.unreadable, processes)
    _print_result(run, saved, encoder)
    watch.print_best()
    if run.is_main_process:
        write_final_report(run.folder)
    return TrainResult(run.folder, saved, encoder, plan.last, loss)


def _hash_tokenizer(config: TrainConfig) -> dict[str, str]:
    """Return the SHA-256 of the weights that BEiT's visual tokens come from, under the key of checkpoints' metadata.

    Without a tokenizer nothing is returned.
    """
    if config.model.tokenizer is None:
        return {}
    path = Path(config.model.tokenizer)
    # by content: the file may lie elsewhere when the run is resumed
    if path.is_file():
        return {"tokenizer": hash_file(path)}
    return {"tokenizer": open_checkpoint(path).model_sha256}


def _hash_teacher(config: TrainConfig, weights: Weights | None) -> dict[str, str]:
    """Return the SHA-256 of a frozen teacher's ``weights``, under the key of checkpoints' metadata."""
    if weights is None or not OBJECTIVES[config.objective].needs_first_weights(config):
        return {}
    return {"teacher": weights.provenance.sha256}


def _check_companions(config: TrainConfig, start: Checkpoint, companions: Mapping[str, str]) -> None:
    """Raise CheckpointError if a resumed run has another tokenizer or teacher than ``start`` was trained with."""
    if start.metadata.get("tokenizer") not in (None, companions.get("tokenizer")):
        raise CheckpointError(
            f"model.tokenizer {config.model.tokenizer}: is not the one that this run began with, and its tokens "
            "mean other things; give that one, or start a new run"
        )
    if start.metadata.get("teacher") not in (None, companions.get("teacher")):
        raise CheckpointError(
            f"model.init {config.model.init}: is not the teacher that this run began with, whose features it predicts; "
            "give that one, or start a new run"
        )


def _write_encoder(run: Run[TrainConfig], learner: Learner, checkpoint: Path) -> Path:
    """Write ``encoder.safetensors`` (and ``encoder_ema``, if there is an average): timm's names, the encoder alone.

    Its metadata say what the encoder is and how its images are prepared (:mod:`ehm.models.encoder_file`). Folders that
    others load by name hold the same encoder. All processes call this, behind the run's last ``checkpoint``.
    """
    config = run.config
    inputs = config.data.inputs
    metadata = encoder_metadata(config.spec, inputs)
    state = learner.state()  # all processes take part, which may share the parameters
    _, averaged = split_average(state.optimizer)
    path = run.folder / "encoder.safetensors"
    if not run.is_main_process:
        return path
    encoder = keep_encoder(state.model, config.spec.blocks)
    average = keep_encoder(averaged, config.spec.blocks)
    for file, arrays in ((path, encoder), (path.with_stem("encoder_ema"), average)):
        if arrays:
            with replace_file(file) as temporary:
                save_file(arrays, temporary, metadata)
    weights = Weights(encoder, Provenance(str(path), "pretrain", inputs=inputs), config.spec)
    write_run_folders(run, weights, checkpoint, path)
    return path


def _print_start(run: Run[TrainConfig], source: Source, plan: RunPlan, notes: Sequence[str]) -> None:
    config = run.config
    optim = config.optim
    spec = config.spec
    height, width = spec.image_size
    units = "patches"
    if config.unit != config.patch_size:
        units = f"units of {config.unit} pixels"
    views = ""
    if config.mask.views > 1:
        views = f" ({config.mask.views} masks an image)"
    console.print(
        f"Pretraining {config.encoder} ({spec.width} wide, {spec.blocks} blocks, {height} x {width} pixels, "
        f"{math.prod(config.units)} {units}) with {config.objective} and {config.masking} masks "
        f"({config.masks.ratio:.0%} hidden)"
    )
    console.print(
        f"  on {config.data.source}: {len(source):,} images, {plan.describe(optim)}, "
        f"batch {optim.batch_size}{views}, learning rate {optim.lr:.2e}; {run.describe_device()}"
    )
    run.print_start(source, notes)
    if run.start is not None and run.start.folder.name >= checkpoint_path(run.folder, plan.last).name:
        stop = f", up to run.max_steps {config.run.max_steps}" if config.run.max_steps else ""
        console.print(f"  all of its steps are done already{stop}")


def _print_result(run: Run[TrainConfig], saved: Path, encoder: Path | None) -> None:
    console.print(f"Checkpoint: {saved}")
    if encoder is not None:
        console.print(f"Encoder for timm: {encoder}")
    else:
        console.print("Stopped by run.max_steps: --resume --set run.max_steps=null goes on, to encoder.safetensors")
    console.print(f"Curves: {run.folder / 'metrics.jsonl'} (tensorboard --logdir {run.folder})")
    if run.config.watch.pictures != 0:
        console.print(f"Reconstructions: {run.folder / PICTURES_FOLDER}")
