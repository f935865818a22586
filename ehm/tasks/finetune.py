"""Supervised training of a classifier, written once against the backend protocol: read it from top to bottom.

A run's folder holds ``config.yaml``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/`` (the newest), ``best/`` (the
one of the highest balanced accuracy) and, at the end, ``metrics.json``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm import backends, checkpoint
from ehm.backends.base import Backend, Classifier
from ehm.config import FinetuneConfig
from ehm.data import Batch, Loader, TrainTransform
from ehm.runlog import RunLog, console
from ehm.runs import Metrics, agree, begin, describe_run, on, save, say_broken, store
from ehm.schedule import learning_rate
from ehm.tasks.evaluate import print_report, write_json
from ehm.tasks.labelled import Part, collect, eval_loader, split
from ehm.tasks.metrics import Report, report
from ehm.tasks.mixing import mix, soft_targets

__all__ = ["DEFAULT_CONFIG", "FinetuneResult", "finetune", "fit"]

DEFAULT_CONFIG = "elpv/finetune"


@dataclass(frozen=True)
class FinetuneResult:
    """Where a run's results are. ``report`` measures the end of training, which ``checkpoint`` holds.

    ``best`` is the checkpoint of the highest balanced accuracy: chosen on the images that it is measured on.
    """

    out: Path
    checkpoint: Path
    best: Path
    report: Report

    @property
    def metrics(self) -> dict[str, float | None]:
        """The report's figures for the whole: top1, balanced_accuracy and, for two classes, auc."""
        return _summary(self.report)


def finetune(
    config: FinetuneConfig | str | Path | None = None,
    *,
    device: str = "auto",
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
) -> FinetuneResult:
    """Train a classifier as ``config`` says (a file, the name of a shipped one, or an object; ELPV's if left out).

    ``overrides`` are ``key=value`` strings, as ``--set`` takes them. With ``resume`` the newest complete checkpoint in
    ``out`` is continued and ends with the weights of a run that was never stopped. Raises EhmError on bad input and
    TrainingError where the loss is not finite.
    """
    folder = Path(out) if out is not None else Path("runs") / "finetune"
    settings, start = begin(FinetuneConfig, DEFAULT_CONFIG, config, overrides, folder, resume)
    return fit(settings, backends.get(device), folder, start)


def fit(
    config: FinetuneConfig, backend: Backend, folder: Path, start: Path | None = None, title: str = "finetune"
) -> FinetuneResult:
    """Train the classifier of ``config`` into ``folder``, from the checkpoint ``start`` if there is one."""
    data, optim, augment, run = config.data, config.optim, config.augment, config.run
    processes = backend.processes
    agree(processes, start)
    leads = processes.rank == 0
    train, val = split(config)
    classes = train.source.classes
    # a resumed run needs nothing but its checkpoint
    model = config.model if start is None else config.model.model_copy(update={"init": str(start)})
    classifier = backend.classifier(config.model_copy(update={"model": model}), len(classes))
    first, best_score, best, result = 0, -1.0, None, None
    if start is not None:
        state, meta = checkpoint.read(start)
        classifier.load(state)
        first, best_score = int(meta["step"]), float(meta["best_score"])
        best = checkpoint.newest(folder / "best")
    transform = TrainTransform(
        classifier.image_size,
        data.crop_scale,
        data.flip,
        data.color_jitter,
        augment.rand_augment,
        augment.random_erasing,
        data.mean,
        data.std,
    )
    loader = Loader(
        train.source,
        transform,
        batch_size=optim.batch_size,
        seed=run.seed,
        shuffle=True,
        drop_last=True,
        workers=data.workers,
        strict=data.strict,
        subset=train.subset,
        rank=processes.rank,
        world_size=processes.size,
    )
    epoch = loader.steps_per_epoch
    total = optim.epochs * epoch
    last = min(total, run.max_steps or total)
    every = max(1, round(run.checkpoint_every * epoch))
    _announce(config, classifier, backend, train, val, epoch, folder, start)
    if leads:
        store(config, folder)

    metrics, saved = Metrics(), start
    val_loader = eval_loader(val, classifier.image_size, config, processes)
    with loader, val_loader, RunLog(folder, last, first, title, run.tensorboard, silent=not leads) as log:
        clock, seen = time.perf_counter(), 0
        for step, batch in enumerate(loader.batches(first, last), start=first):
            rng = np.random.default_rng([run.seed, step])
            images, targets = _mixed(batch, config, len(classes), rng)
            lr = learning_rate(step, total, optim.warmup_epochs * epoch, optim.lr, optim.min_lr, optim.schedule)
            metrics.add(step + 1, classifier.train_step(images, targets, lr, optim.weight_decay))

            done, seen = step + 1, seen + batch.total
            log.advance(done)
            measure, due = done % epoch == 0 or done == last, done % every == 0 or done == last
            if measure or due or done % run.log_every == 0:
                values = {**metrics.read(saved), "epoch": done / epoch, "lr": lr}
                values["images_per_second"] = seen / (time.perf_counter() - clock)
                if measure:
                    result = report(*collect(classifier.logits, val_loader, processes=processes), classes)
                    values |= {name: value for name, value in _summary(result).items() if value is not None}
                log.log(done, values)
                clock, seen = time.perf_counter(), 0
            if not (measure or due):
                continue
            better = measure and result is not None and result.balanced_accuracy > best_score
            best_score = result.balanced_accuracy if result is not None and better else best_score
            meta = _meta(config, backend, classifier, classes, done, epoch)
            meta |= {"best_score": best_score, "metrics": {} if result is None else _summary(result)}
            if better:
                best = save(folder / "best", classifier, meta, 1, processes)
            if due:
                saved = save(folder / "checkpoints", classifier, meta, run.keep, processes)
        if result is None:  # resumed at its end
            result = report(*collect(classifier.logits, val_loader, processes=processes), classes)
    assert saved is not None
    best = best or saved
    print_report(result)
    say_broken(loader.broken | val_loader.broken)
    if leads:
        _write_metrics(folder, val, result, saved, best, best_score)
    return FinetuneResult(folder, saved, best, result)


def _mixed(
    batch: Batch, config: FinetuneConfig, classes: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    assert batch.labels is not None
    targets = soft_targets(batch.labels, classes, config.augment.label_smoothing)
    return mix(batch.images, targets, config.augment.mixup, config.augment.cutmix, rng)


def _meta(
    config: FinetuneConfig, backend: Backend, classifier: Classifier, classes: Sequence[str], step: int, epoch: int
) -> dict[str, Any]:
    """What ``state.json`` says of a classifier, enough to open it without anything else."""
    stored = config.model_dump(mode="json", include=set(FinetuneConfig.model_fields))
    return describe_run("classifier", stored, backend, step, epoch) | {
        "classes": list(classes),
        "image_size": list(classifier.image_size),
        "encoder": dict(classifier.architecture),
    }


def _summary(result: Report) -> dict[str, float | None]:
    return {"top1": result.top1, "balanced_accuracy": result.balanced_accuracy, "auc": result.auc}


def _write_metrics(folder: Path, val: Part, result: Report, saved: Path, best: Path, best_score: float) -> None:
    chosen = {"checkpoint": str(best), "balanced_accuracy": best_score}
    values = {"checkpoint": str(saved), "part": val.title, **result.to_json(), "best": chosen}
    path = write_json(folder / "metrics.json", values)
    console.print(f"Checkpoint: {saved} (the highest balanced accuracy, {best_score:.1%}: {best})")
    console.print(f"Report: {path}")


def _announce(
    config: FinetuneConfig,
    classifier: Classifier,
    backend: Backend,
    train: Part,
    val: Part,
    epoch: int,
    folder: Path,
    start: Path | None,
) -> None:
    optim, (height, width) = config.optim, classifier.image_size
    verb = "Linear probing of" if config.frozen else "Fine-tuning"
    console.print(f"{verb} {config.model.init} at {height} x {width} pixels, {len(train.source.classes)} classes")
    console.print(
        f"  on {config.data.source}: {len(train):,} images ({train.title}), measured on {len(val):,} ({val.title}); "
        f"{optim.epochs} epochs of {epoch} steps, batch {optim.batch_size}, {config.optimizer}, "
        f"learning rate {optim.lr:.2e}; {on(backend)}"
    )
    for note in classifier.notes:
        console.print(f"  {note}")
    console.print(f"  into {folder}" + (f", continuing {start.name}" if start else ""))
