"""Pretraining with masked images, written once for all backends: ``_pretrain`` is the loop, from top to bottom.

A run's folder has these files:

config.yaml, metrics.jsonl, tensorboard/
checkpoints/                 the newest checkpoints
best/                        the checkpoint with the best features (:mod:`ehm.training.watch`)
pictures/                    reconstructions (:mod:`ehm.training.pictures`)
broken/                      a step whose loss is not finite, if there was one (:mod:`ehm.training.broken`)

and at the end of the run

encoder.safetensors          the encoder alone; with an average also encoder_ema.safetensors
encoder/, encoder_hf/        the encoder, for timm and transformers to load by name
report.html
"""

from __future__ import annotations

import math
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from safetensors.numpy import save_file

from ehm.backends.base import Learner
from ehm.config import TrainConfig
from ehm.config.objectives import OBJECTIVES
from ehm.console import console
from ehm.data import Source
from ehm.errors import CheckpointError, ConfigError, NotFiniteError
from ehm.models.encoder_file import make_encoder_metadata
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
    """The results of a run: its folder, last checkpoint, encoder, number of steps and last loss.

    ``encoder`` is None if the run is not complete.
    """

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
    """Pretrain an encoder with the configuration ``config``: a file, the name of a shipped one, or an object.

    Without ``config`` the one for ELPV is taken. ``overrides`` are ``key=value`` strings, as for ``--set``. ``resume``
    continues from the newest complete checkpoint in ``out``, with the configuration stored there unless another is
    given. A run that was stopped at any moment and resumed ends with the same weights as one that was not (on a CPU: on
    the same machine, with the same number of threads).

    A step whose loss is not finite is kept in a folder below ``out``. ``replay`` is that folder: instead of training,
    the step is taken again, with the settings that ``overrides`` change. Raises EhmError on bad input and
    NotFiniteError if the loss is not finite.
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
            # without the traceback, whose frames would keep the learner in device memory: taking the step again needs
            # that memory for a new learner
            broken = error.with_traceback(None)
        raise keep_broken_step(run, weights, broken)


def _pretrain(run: Run[TrainConfig], weights: Weights | None, notes: tuple[str, ...]) -> TrainResult:
    config = run.config
    processes = run.processes

    # images and settings are checked before the learner is created, which takes longest: a mistake costs seconds
    source, loader = open_images(config, processes)
    plan = plan_run(config.optim, config.run, loader.steps_per_epoch)
    is_resumed = run.start is not None
    views = config.mask.views
    warnings = check_plan(plan, config.optim, config.run, len(source), views=views, measures=False, resumed=is_resumed)
    held_out = open_validation_part(config, source)
    watch = open_watch(run, source, held_out, plan)
    training_data = identify_training_data(source, None, config.data.workers, processes)

    learner = run.backend.create_learner(choose_first_weights(run), weights)
    companions = {**_hash_tokenizer(config), **_hash_teacher(config, weights)}
    if run.start is not None:
        check_resumed_data(run.start, training_data, None, config.data.source)
        _check_companions(config, run.start, companions)
        learner.load(run.start.take_state())
    notes = (*learner.notes, *notes)
    if is_resumed and "teacher" in companions:
        # these notes are about model.init, which only the teacher comes from now; the model comes from the checkpoint
        notes = (f"predicts the features of {config.model.init} as before",)
    pictures = open_pictures(run, learner, plan, source, held_out)
    _print_start(run, source, plan, [*notes, *warnings, *watch.notes])
    run.write_config()

    saved = run.start_path
    loss = math.nan
    steps = MaskedSteps(config, plan, learner, create_masker(run))
    meter = RunMeter(run, plan)
    with loader, run.open_log(plan.last, run.first_step, "pretrain") as log:
        batches = steps.prepare_ahead(loader.batches(run.first_step, plan.last))
        for step, (batch, prepared) in enumerate(meter.time_batches(batches), start=run.first_step):
            masked = steps.mask_batch(step, batch, prepared, meter.time_masks)
            rates = steps.rates_at(step)
            metrics = steps.take_step(masked, rates)

            done = step + 1
            meter.add_step(done, batch, {**metrics, "lr": rates.lr}, masked.problems)
            log.advance(done)
            is_watch_due = watch.is_due(done)
            is_best = False
            if is_watch_due or plan.is_log_due(done) or plan.is_save_due(done):
                # before a checkpoint too, because this raises NotFiniteError if the weights are not worth saving
                values = meter.read_values(saved) | average_over_processes(masked.masks.read_figures(), processes)
                loss = values["loss"]
                if is_watch_due:
                    figures, is_best = watch.measure(learner, done)
                    values |= figures
                    meter.restart_clock()  # the speed of training does not include measurements
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
                meter.check_finite(saved)  # weights that are not finite give no attention to draw masks from
                log.add_picture(done, "reconstruction", pictures.draw(done))
                meter.restart_clock()  # nor does it include pictures

    assert saved is not None  # a run has at least one step, and its last one is saved
    encoder = None
    if plan.last == plan.total:  # a run that run.max_steps stops early has no final encoder; --resume continues it
        encoder = _write_encoder(run, learner, saved)
    print_unreadable(loader.unreadable | watch.unreadable, processes)
    _print_result(run, saved, encoder)
    watch.print_best()
    if run.is_main_process:
        write_final_report(run.folder)
    return TrainResult(run.folder, saved, encoder, plan.last, loss)


def _hash_tokenizer(config: TrainConfig) -> dict[str, str]:
    """Return the SHA-256 of the weights of BEiT's tokenizer as metadata for checkpoints: empty without a tokenizer."""
    if config.model.tokenizer is None:
        return {}
    path = Path(config.model.tokenizer)
    # the content and not the path, because the file may have moved when the run is resumed
    if path.is_file():
        return {"tokenizer": hash_file(path)}
    return {"tokenizer": open_checkpoint(path).model_sha256}


def _hash_teacher(config: TrainConfig, weights: Weights | None) -> dict[str, str]:
    """Return the SHA-256 of a frozen teacher's ``weights`` as metadata for checkpoints: empty without a teacher."""
    if weights is None or not OBJECTIVES[config.objective].needs_first_weights(config):
        return {}
    return {"teacher": weights.provenance.sha256}


def _check_companions(config: TrainConfig, start: Checkpoint, companions: Mapping[str, str]) -> None:
    """Raise CheckpointError if a resumed run has another tokenizer or teacher than ``start`` was trained with."""
    if start.metadata.get("tokenizer") not in (None, companions.get("tokenizer")):
        raise CheckpointError(
            f"model.tokenizer {config.model.tokenizer}: is not the one that this run began with, and its tokens have "
            "other meanings; give that one, or start a new run"
        )
    if start.metadata.get("teacher") not in (None, companions.get("teacher")):
        raise CheckpointError(
            f"model.init {config.model.init}: is not the teacher that this run began with, whose features it predicts; "
            "give that one, or start a new run"
        )


def _write_encoder(run: Run[TrainConfig], learner: Learner, checkpoint: Path) -> Path:
    """Write the encoder with timm's parameter names to ``encoder.safetensors``, and return that path.

    If there is a moving average, its encoder goes to ``encoder_ema.safetensors``. The metadata of these files say what
    the encoder is and how its images are prepared (:mod:`ehm.models.encoder_file`). The folders for timm and
    transformers are written too. All processes call this after the last ``checkpoint`` of the run.
    """
    config = run.config
    inputs = config.data.inputs
    metadata = make_encoder_metadata(config.spec, inputs)
    state = learner.state()  # all processes have to call this, as each may hold a share of the parameters
    _, averaged = split_average(state.optimizer)
    path = run.folder / "encoder.safetensors"
    if not run.is_main_process:
        return path
    encoder = keep_encoder(state.model, config.spec.blocks)
    average = keep_encoder(averaged, config.spec.blocks)
    for file, arrays in ((path, encoder), (path.with_stem("encoder_ema"), average)):
        if arrays:  # without a moving average there are none
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
    console.print(f"Curves: {run.folder / 'metrics.jsonl'}{_describe_tensorboard(run)}")
    if run.config.watch.pictures != 0:
        console.print(f"Reconstructions: {run.folder / PICTURES_FOLDER}")


def _describe_tensorboard(run: Run[TrainConfig]) -> str:
    """Return the command that shows the curves in TensorBoard, and how to install it; empty if the run wrote none."""
    if "tensorboard" not in run.config.run.trackers:
        return ""
    # event files are written without TensorBoard itself, and the command may be that of another environment
    is_installed = find_spec("tensorboard") is not None or shutil.which("tensorboard") is not None
    remedy = "" if is_installed else "; pip install tensorboard installs it"
    return f" (tensorboard --logdir {shlex.quote(str(run.folder))}{remedy})"
