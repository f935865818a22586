"""Measure the features while a run pretrains, and keep the checkpoint at which they were best (docs/watch.md).

The loss of a masked model says little about its features. So at intervals the features of the same images are computed
by the encoder, and by its moving average if there is one. This changes nothing that training depends on.

Shapes: B images, n images in all, D features.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import Learner
from ehm.config import TrainConfig
from ehm.console import console
from ehm.data import Batch, EvalTransform, Source
from ehm.storage.checkpoint import newest_checkpoint, open_checkpoint
from ehm.training.collapse import CollapseDetector
from ehm.training.feature_figures import measure_features
from ehm.training.loaders import make_eval_loader
from ehm.training.plan import RunPlan
from ehm.training.rows import collect_rows
from ehm.training.run import Run
from ehm.training.training_data import run_on_first
from ehm.training.watch_plan import WatchPlan
from ehm.training.watched_images import WatchedImages, open_watched_images

__all__ = ["BEST_FOLDER", "Watch", "open_watch"]

BEST_FOLDER = "best"
"""The folder for the best checkpoint in the folder of a run."""
_MOST_AT_ONCE = 256
"""Images whose features are computed at once, at most: larger batches are not faster."""
_MOST_KEPT_BYTES = 512 * 2**20
"""Up to this size, the images of a process stay in memory between measurements; otherwise they are read every time."""


def open_watch(run: Run[TrainConfig], training: Source, held_out: Source | None, plan: RunPlan) -> Watch:
    """Prepare the measurements that the section ``watch`` of a run asks for.

    ``training`` is the source that it trains on, and ``held_out`` the validation part, if there is one. Raises
    DataError if the images of the section cannot be opened, and ConfigError if its figure needs labels that they lack.
    """
    images = None
    if run.config.watch.every != 0:
        images = open_watched_images(run.config, training, held_out)
    return Watch(run, plan, images)


class Watch:
    """Measures the features at the steps that are due, and remembers the best score; does nothing without ``images``.

    ``figure`` is the one that the best checkpoint is chosen by, None if none is kept. ``unreadable`` maps files that
    could not be read to the reasons. All processes call the methods.
    """

    def __init__(self, run: Run[TrainConfig], plan: RunPlan, images: WatchedImages | None) -> None:
        config = run.config
        self.unreadable: dict[str, str] = {}
        self.figure = _choose_figure(config, images)
        self._run = run
        self._images = images
        self._has_average = config.optim.ema_decay is not None
        self._kept: list[Batch] | None = None
        self._figures: dict[str, float] = {}
        # the state of an earlier run is only valid for the same figure of the same images
        self._target = {
            "figure": self.figure,
            "source": None if images is None else images.name,
            "images": 0 if images is None else len(images),
        }
        stored: Mapping[str, Any] = {}
        if run.start is not None:
            stored = self._read_own_state(run.start.metadata)
        models = 2 if self._has_average else 1
        images_to_compute = 0 if images is None else len(images) * models
        self._plan = WatchPlan(config, plan, images_to_compute, stored.get("interval"))
        chance = 0.0 if images is None else images.largest_class
        self._detector = CollapseDetector(chance, stored.get("collapse"))
        self._best_score = self._read_best_score()

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines that say what is going to be measured, and when."""
        if self._images is None:
            return ()
        notes = [f"watches {self._images.describe()}, {self._plan.describe()}"]
        if self.figure is not None:
            notes.append(f"keeps the checkpoint of the highest {self.figure} in {self._run.folder / BEST_FOLDER}")
        return tuple(notes)

    def is_due(self, done: int) -> bool:
        """Return whether the features are measured once ``done`` steps are done; called after every step."""
        return self._images is not None and self._plan.is_due(done)

    def measure(self, learner: Learner, done: int) -> tuple[dict[str, float], bool]:
        """Return the figures of ``learner`` after ``done`` steps, and whether it is the best so far.

        There are no figures if the features are not finite.
        """
        seconds_per_step = self._plan.time_steps(done)
        batches = self._read_images()
        start = time.perf_counter()
        figures = self._measure_learner(learner, batches)
        if not figures:
            console.print(f"Step {done}: the features are not finite and could not be measured")
            return {}, False
        seconds = time.perf_counter() - start
        self._figures = figures
        for note in (self._add_cost(done, seconds, seconds_per_step), self._detector.add(done, figures)):
            if note is not None:
                console.print(note)
        if self.figure is None:
            return figures, False
        score = figures[self.figure]
        is_best = score > self._best_score
        self._best_score = max(self._best_score, score)
        return figures, is_best

    def to_json(self) -> dict[str, Any]:
        """Return the state from which a resumed run continues to measure as before."""
        return {
            **self._target,
            "best_score": self._best_score if math.isfinite(self._best_score) else None,
            "interval": self._plan.interval,
            "collapse": self._detector.to_json(),
            "figures": self._figures,
        }

    def print_best(self) -> None:
        """Print the folder of the best checkpoint, if there is one."""
        best = newest_checkpoint(self._run.folder / BEST_FOLDER)
        if best is not None and math.isfinite(self._best_score):
            console.print(f"Checkpoint of the highest {self.figure}, {self._best_score:.4g}: {best}")

    def _measure_learner(self, learner: Learner, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the figures of the model by name, and those of its moving average with the suffix ``_ema``."""
        images = self._images
        assert images is not None
        indices, rows = collect_rows(partial(self._compute_features, learner), batches, self._run.processes)
        places = np.searchsorted(images.subset.indices, indices)
        if not np.isfinite(rows).all():
            return {}

        def measure() -> dict[str, float]:
            figures: dict[str, float] = {}
            for suffix, features in zip(("", "_ema"), rows.swapaxes(0, 1), strict=False):
                measured = measure_features(features, images.labels_at(places), images.folds_at(places), images.classes)
                figures |= {name + suffix: value for name, value in measured.items()}
            return figures

        # in one process while the others wait, because all may share the same processors
        return run_on_first(measure, self._run.processes)

    def _compute_features(self, learner: Learner, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the features of the model and of its average, if there is one: (B, 1 or 2, D)."""
        if not len(images):
            # A process without a share of the last batch computes the features of a black image, because each process
            # may hold a share of the parameters, and all have to take part then.
            pixels = self._run.config.data.pixels
            black = np.zeros((1, *self._run.config.image_size, pixels.count), pixels.dtype)
            return self._compute_features(learner, black)[:0]
        features = [learner.compute_features(images)]
        if self._has_average:
            features.append(learner.compute_features(images, average=True))
        return np.stack(features, axis=1)

    def _add_cost(self, done: int, seconds: float, seconds_per_step: float | None) -> str | None:
        """Tell the plan how long a measurement took, compared with a step; return a sentence on it for the user."""

        def count_steps() -> float | None:
            return None if seconds_per_step is None else seconds / seconds_per_step

        # by the clock of the first process, because all processes have to measure at the same steps
        cost = run_on_first(count_steps, self._run.processes)
        return None if cost is None else self._plan.add_cost(done, cost)

    def _read_images(self) -> Iterable[Batch]:
        """Return this process's share of the images, from memory if they fit there."""
        if self._kept is not None:
            return self._kept
        images = self._images
        assert images is not None
        config = self._run.config
        height, width = config.image_size
        pixels = config.data.pixels
        size = len(images) * height * width * pixels.count * pixels.dtype.itemsize // self._run.processes.size
        if size > _MOST_KEPT_BYTES:
            return self._load_images(images)
        # copied, because the loader may reuse the memory of a batch
        self._kept = [replace(batch, images=np.array(batch.images)) for batch in self._load_images(images)]
        return self._kept

    def _load_images(self, images: WatchedImages) -> Iterable[Batch]:
        config = self._run.config
        # the same preparation as in ehm probe, so that the figures agree
        transform = EvalTransform.from_spec(config.image_size, config.data.inputs)
        with make_eval_loader(
            images.subset.source,
            transform,
            config,
            self._run.processes,
            most=_MOST_AT_ONCE,
            subset=images.subset.selected,
        ) as loader:
            yield from loader.batches(0, loader.steps_per_epoch)
        self.unreadable |= loader.unreadable

    def _read_best_score(self) -> float:
        """Return the score of the best checkpoint of a resumed run; lower than any if there is none."""
        best = newest_checkpoint(self._run.folder / BEST_FOLDER)
        if self._run.start is None or best is None:
            return -math.inf
        # from the best checkpoint itself, which may be newer than the one that the run is resumed from
        score = self._read_own_state(open_checkpoint(best).metadata).get("best_score")
        return -math.inf if score is None else float(score)

    def _read_own_state(self, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the state in the ``metadata`` of a checkpoint; empty if it is about another figure or other images."""
        stored: Mapping[str, Any] = metadata.get("watch", {})
        is_same = all(stored.get(name) == value for name, value in self._target.items())
        return stored if is_same else {}


def _choose_figure(config: TrainConfig, images: WatchedImages | None) -> str | None:
    """Return the figure that the best checkpoint is chosen by, None if none is kept."""
    if images is None:
        return None
    if config.watch.figure is None and images.labels is not None:
        return "knn"
    # without labels there is no default: RankMe, which needs none, may rise while the features get worse
    return config.watch.figure
