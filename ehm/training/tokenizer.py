"""``ehm tokenizer train``: train a discrete VAE on unlabelled images, whose codes are BEiT's visual tokens.

A run's folder has ``config.yaml``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/`` and, at the end,
``metrics.json`` and ``reconstructions.png``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ehm.config import TokenizerConfig
from ehm.console import console
from ehm.data import Source, TrainTransform, open_source
from ehm.report.run_card import render_run_card
from ehm.storage.writing import write_json
from ehm.training.loaders import make_train_loader
from ehm.training.plan import RunPlan, check_plan, plan_run
from ehm.training.progress import RunMeter
from ehm.training.resume import check_resumed_data
from ehm.training.run import Run, open_run, print_unreadable
from ehm.training.schedule import learning_rate_at
from ehm.training.tokenizer_quality import Quality, draw_reconstructions, measure_quality
from ehm.training.training_data import identify_training_data

__all__ = ["DEFAULT_CONFIG", "TokenizerResult", "train_tokenizer"]

DEFAULT_CONFIG = "elpv/tokenizer"
DEFAULT_OUT = Path("runs/tokenizer")


@dataclass(frozen=True)
class TokenizerResult:
    """The results of a run: its folder, its last checkpoint, and the quality of the tokens."""

    out: Path
    checkpoint: Path
    quality: Quality

    def _repr_html_(self) -> str | None:
        return render_run_card(self.out)


def train_tokenizer(
    config: TokenizerConfig | str | Path | None = None,
    *,
    device: str = "auto",
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
) -> TokenizerResult:
    """Train a tokenizer with the configuration ``config``: a file, the name of a shipped one, or an object.

    Without ``config`` the one for ELPV is taken. ``overrides`` are ``key=value`` strings, as for ``--set``. ``resume``
    continues from the newest complete checkpoint in ``out``, and ends with the same weights as a run that was not
    stopped. Raises EhmError on bad input and TrainingError if the loss is not finite.
    """
    folder = Path(out or DEFAULT_OUT)
    run = open_run(TokenizerConfig, DEFAULT_CONFIG, config, overrides, device, folder, resume=resume)
    with run.explain_write_errors():
        return _train(run)


def _train(run: Run[TokenizerConfig]) -> TokenizerResult:
    config = run.config
    data = config.data
    optim = config.optim

    source = open_source(data, "train")
    transform = TrainTransform(config.image_size, data.crop_scale, data.flip, data.color_jitter)
    loader = make_train_loader(source, transform, config, run.processes)
    plan = plan_run(optim, config.run, loader.steps_per_epoch)
    # settings are checked before the tokenizer is created, so that a mistake costs seconds
    warnings = check_plan(plan, optim, config.run, len(source), measures=False, resumed=run.start is not None)
    training_data = identify_training_data(source, None, data.workers, run.processes)

    tokenizer = run.backend.create_tokenizer(config)
    if run.start is not None:
        check_resumed_data(run.start, training_data, None, data.source)
        tokenizer.load(run.start.take_state())
    _print_start(run, source, plan, warnings)
    run.write_config()

    saved = run.start_path
    meter = RunMeter(run, plan)
    with loader, run.open_log(plan.last, run.first_step, "tokenizer") as log:
        batches = meter.time_batches(loader.batches(run.first_step, plan.last))
        for step, batch in enumerate(batches, start=run.first_step):
            # the relaxed codes of the Gumbel-softmax become discrete as the temperature falls
            temperature = temperature_at(config.temperature, step / plan.total)
            lr = learning_rate_at(optim, step, plan.steps_per_epoch)
            metrics = tokenizer.train_step(batch.images, temperature, lr, optim.weight_decay)

            done = step + 1
            meter.add_step(done, batch, {**metrics, "temperature": temperature, "lr": lr})
            log.advance(done)
            if plan.is_log_due(done) or plan.is_save_due(done):
                log.log(done, meter.read_values(saved))
            if plan.is_save_due(done):
                metadata = run.make_metadata("tokenizer", done, plan)
                metadata["data"] = training_data.to_json()
                saved = run.save_checkpoint(tokenizer, metadata)

    assert saved is not None  # a run has at least one step, and its last one is saved
    # every process measures the same images: that takes less time than to send the results of one
    quality, shown = measure_quality(tokenizer, source, config)
    if run.is_main_process:
        draw_reconstructions(shown, run.folder)
    print_unreadable(loader.unreadable, run.processes)
    if run.is_main_process:
        write_json(run.folder / "metrics.json", {"checkpoint": str(saved), **asdict(quality)})
    _print_result(run.folder, saved, quality)
    return TokenizerResult(run.folder, saved, quality)


def temperature_at(temperature: tuple[float, float], progress: float) -> float:
    """Return the temperature of the Gumbel-softmax at ``progress`` in [0, 1], on half a cosine from first to last."""
    first, last = temperature
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2


def _print_start(run: Run[TokenizerConfig], source: Source, plan: RunPlan, notes: Sequence[str]) -> None:
    config = run.config
    height, width = config.image_size
    tokens = (height // config.stride) * (width // config.stride)
    console.print(
        f"Training a tokenizer: {config.vocabulary:,} codes, {config.width} wide, one for {config.stride} x "
        f"{config.stride} pixels ({tokens} tokens for {height} x {width} pixels)"
    )
    console.print(
        f"  on {config.data.source}: {len(source):,} images, {plan.describe(config.optim)}, "
        f"batch {config.optim.batch_size}, learning rate {config.optim.lr:.2e}; {run.describe_device()}"
    )
    run.print_start(source, notes)


def _print_result(folder: Path, saved: Path, quality: Quality) -> None:
    console.print(
        f"Of {quality.images:,} images, tokens leave a squared error of {quality.mse:.4f} (their mean colours "
        f"{quality.mean_mse:.4f}); codes in use: {quality.codes_used:.0%}, perplexity {quality.perplexity:.0f}"
    )
    console.print(f"Checkpoint: {saved}")
    console.print(f"Pictures: {folder / 'reconstructions.png'}; figures: {folder / 'metrics.json'}")
    console.print(f"To use it: ehm train --set objective=beit --set model.tokenizer={folder}")
