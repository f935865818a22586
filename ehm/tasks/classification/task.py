"""Classification: the whole image has one of C labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import Backend, Classifier
from ehm.config import FinetuneConfig
from ehm.data import Batch, EvalTransform, TrainTransform, open_source
from ehm.data.subset import Subset, require_labels
from ehm.errors import DataError
from ehm.storage.arrays import LearnerState
from ehm.tasks.classification.metrics import Report, report
from ehm.tasks.classification.mixing import mix, soft_targets
from ehm.tasks.evaluate import Evaluation, Stored
from ehm.tasks.held_out import leave_out_first_weights, remember_images, select_part
from ehm.tasks.images import collect, eval_loader, split, train_loader
from ehm.tasks.occurrences import count_labels

__all__ = ["Classification", "reopen"]


class Classification:
    """Implements :class:`ehm.training.supervised.Task`: fine-tuning, and linear probing where ``config.frozen``."""

    kind = "classifier"

    def __init__(self, config: FinetuneConfig, backend: Backend, start: Path | None = None) -> None:
        data, augment, self._processes = config.data, config.augment, backend.processes
        self.config = config
        self.train, val = split(config)
        self.classes = self.train.source.classes
        self.data = remember_images(config, self.train, val, self.classes, start, self._processes)
        self.val = leave_out_first_weights(val, self.data, config, self._processes)
        self.class_counts = count_labels(self.train, data)
        # a resumed run needs nothing but its checkpoint
        model = config.model if start is None else config.model.model_copy(update={"init": str(start)})
        self.learner: Classifier = backend.create_classifier(
            config.model_copy(update={"model": model}), len(self.classes)
        )
        self.headline = f"{'Linear probing of' if config.frozen else 'Fine-tuning'} {config.model.init}"
        inputs = self.learner.inputs
        transform = TrainTransform(
            self.learner.image_size,
            data.crop_scale,
            data.flip,
            data.color_jitter,
            augment.rand_augment,
            augment.random_erasing,
            inputs.mean,
            inputs.std,
            inputs.interpolation,
        )
        self.loader = train_loader(self.train, transform, config, self._processes)
        measured = EvalTransform.from_spec(self.learner.image_size, inputs)
        self._val_loader = eval_loader(self.val, measured, config, self._processes)

    @property
    def stored(self) -> dict[str, Any]:
        """What ``FinetuneConfig`` reads: a probe's own keys are left out."""
        return self.config.model_dump(mode="json", include=set(FinetuneConfig.model_fields))

    @property
    def broken(self) -> Mapping[str, str]:
        """See :attr:`ehm.training.supervised.Task.broken`."""
        return self.loader.unreadable | self._val_loader.unreadable

    def step(self, batch: Batch, step: int, lr: float) -> Mapping[str, SupportsFloat]:
        """See :meth:`ehm.training.supervised.Task.step`."""
        assert batch.labels is not None
        augment, rng = self.config.augment, np.random.default_rng([self.config.run.seed, step])
        targets = soft_targets(batch.labels, len(self.classes), augment.label_smoothing)
        images, targets = mix(batch.images, targets, augment.mixup, augment.cutmix, rng)
        return self.learner.train_step(images, targets, lr, self.config.optim.weight_decay)

    def measure(self) -> Report:
        """See :meth:`ehm.training.supervised.Task.measure`."""
        return report(*collect(self.learner.compute_logits, self._val_loader, processes=self._processes), self.classes)

    def close(self) -> None:
        """See :meth:`ehm.training.supervised.Task.close`."""
        self.loader.close()
        self._val_loader.close()


def reopen(stored: Stored, backend: Backend, config: str | Path | None, overrides: Sequence[str]) -> Evaluation[Report]:
    """The classifier of a checkpoint, on the part of the images that ``config`` and ``overrides`` say.

    Raises DataError where the source has no labels, or others.
    """
    settings = stored.settings(FinetuneConfig, config, overrides)
    classes = tuple(stored.meta["classes"])
    classifier = backend.create_classifier(settings, len(classes))
    classifier.load(LearnerState(stored.arrays, {}))
    source = open_source(settings.data, "train")
    part = select_part(
        stored,
        settings,
        source,
        lambda: split(settings, source)[1],
        lambda: open_source(settings.data, "val"),
        backend.processes,
    )
    numbers = _renumber(part, classes, settings.data.source)
    transform = EvalTransform.from_spec(classifier.image_size, classifier.inputs)
    loader = eval_loader(part, transform, settings, backend.processes)

    def measure() -> Report:
        with loader:
            labels, logits = collect(classifier.compute_logits, loader, "evaluate", backend.processes)
        return report(numbers[labels], logits, classes)

    return Evaluation(settings.data.source, part, measure, loader.unreadable)


def _renumber(part: Subset, classes: tuple[str, ...], name: str) -> NDArray[np.int64]:
    """The checkpoint's number of each of the source's classes, matched by name."""
    require_labels(part.source, name)
    unknown = [label for label in part.source.classes if label not in classes]
    if unknown:
        raise DataError(
            f"data.source {name}: class {unknown[0]} is not among the classifier's {len(classes)} "
            f"({', '.join(classes[:5])}{', …' if len(classes) > 5 else ''})"
        )
    return np.array([classes.index(label) for label in part.source.classes], dtype=np.int64)
