"""Classification: the whole image has one of C labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import Backend, Classifier
from ehm.config import FinetuneConfig
from ehm.data import Batch, EvalTransform, Source, Split, TrainTransform, open_source
from ehm.data.subset import Subset, require_labels
from ehm.models.opening import take_weights
from ehm.storage.checkpoint import Checkpoint
from ehm.tasks.base import Evaluation, Task, load_learner, merge_config
from ehm.tasks.classes import count_labels, number_classes
from ehm.tasks.classification.metrics import ClassificationReport, report_classification
from ehm.tasks.classification.mistakes import IndexedMistake, find_mistakes, write_mistakes
from ehm.tasks.classification.mixing import make_soft_targets, mix_images
from ehm.tasks.folds import divide_by_fold, require_same_classes, stratify_source
from ehm.tasks.predictions import collect_indexed_predictions
from ehm.training.loaders import make_eval_loader, make_train_loader

__all__ = ["MOST_AT_ONCE", "Classification"]

MOST_AT_ONCE = 256
"""Images that are measured at once, at most: more make nothing faster."""


class Classification(Task[FinetuneConfig, ClassificationReport]):
    """Fine-tuning, or linear probing if ``config.frozen``."""

    learner: Classifier

    def __init__(self, config: FinetuneConfig, backend: Backend, start: Checkpoint | None = None) -> None:
        train, val = self.split_images(config)
        super().__init__(config, backend, train, val, start)
        self.class_counts = count_labels(train, config.data)
        self.learner = backend.create_task_learner(self.learner_config, len(self.classes), self.take_first_weights())
        self.headline = f"{'Linear probing of' if config.frozen else 'Fine-tuning'} {config.model.init}"

        data = config.data
        inputs = self.learner.inputs
        transform = TrainTransform(
            self.learner.image_size,
            data.crop_scale,
            data.flip,
            data.color_jitter,
            config.augment.rand_augment,
            config.augment.random_erasing,
            inputs.mean,
            inputs.std,
            inputs.interpolation,
        )
        self.loader = make_train_loader(train.source, transform, config, self.processes, subset=train.selected)
        numbers = np.arange(len(self.classes))  # the source's classes are those that are trained
        self.evaluation = ClassifierEvaluation(self.learner, self.classes, numbers, config, self.val, backend)

    @property
    def config_to_keep(self) -> dict[str, Any]:
        """The configuration as JSON, as ``FinetuneConfig`` reads it: a probe's own keys are left out."""
        return self.config.model_dump(mode="json", include=set(FinetuneConfig.model_fields))

    def train_step(self, batch: Batch, step: int, lr: float) -> Mapping[str, SupportsFloat]:
        """Take an optimiser step on images that Mixup and CutMix have mixed."""
        assert batch.labels is not None
        augment = self.config.augment
        # a generator of its own for each step, so that a resumed run draws what the run before would have drawn
        rng = np.random.default_rng([self.config.run.seed, step])
        targets = make_soft_targets(batch.labels, len(self.classes), augment.label_smoothing)
        images, targets = mix_images(batch.images, targets, augment.mixup, augment.cutmix, rng)
        return self.learner.train_step(images, targets, lr, self.config.optim.weight_decay)

    @classmethod
    def open_source(cls, config: FinetuneConfig, split: Split) -> Source:
        """Open images of classes."""
        return open_source(config.data, split)

    @classmethod
    def divide_source(cls, config: FinetuneConfig, source: Source) -> tuple[Subset[Source], Subset[Source]]:
        """Return the source's own parts, or hold out a fold of each class.

        Raises DataError if there are no labels, or if the parts disagree about the classes.
        """
        labels = require_labels(source, config.data.source)
        if source.split == "train":
            val = cls.open_source(config, "val")
            require_labels(val, config.data.source)
            require_same_classes(source, val, config.data.source)
            return Subset(source, None, "train"), Subset(val, None, "val")
        return divide_by_fold(source, stratify_source(source, labels, config), config)

    @classmethod
    def open_evaluation(
        cls, checkpoint: Checkpoint, backend: Backend, config: str | Path | None, overrides: Sequence[str]
    ) -> ClassifierEvaluation:
        """Prepare to measure the classifier of a checkpoint; DataError if the source has no labels, or others."""
        settings = merge_config(FinetuneConfig, checkpoint, config, overrides)
        classes = tuple(checkpoint.metadata["classes"])
        classifier = backend.create_task_learner(settings, len(classes), take_weights(checkpoint))
        load_learner(classifier, checkpoint)
        subset = cls.select_subset(checkpoint, settings, backend.processes)
        require_labels(subset.source, settings.data.source)
        # other images may have the classes in another order, or not all of them
        numbers = number_classes(subset.source.classes, classes, settings.data.source, "classifier")
        return ClassifierEvaluation(classifier, classes, numbers, settings, subset, backend)


class ClassifierEvaluation(Evaluation[ClassificationReport]):
    """Figures of a classifier of ``classes``; ``numbers`` are those of the source's classes among them."""

    def __init__(
        self,
        classifier: Classifier,
        classes: tuple[str, ...],
        numbers: NDArray[np.int64],
        config: FinetuneConfig,
        subset: Subset[Source],
        backend: Backend,
    ) -> None:
        # as the weights say, so that an exported bundle sees the same pixels
        transform = EvalTransform.from_spec(classifier.image_size, classifier.inputs)
        loader = make_eval_loader(
            subset.source, transform, config, backend.processes, most=MOST_AT_ONCE, subset=subset.selected
        )
        super().__init__(config.data.source, subset, loader, backend.processes)
        self._classifier = classifier
        self._classes = classes
        self._numbers = numbers
        self._mistakes: list[IndexedMistake] = []

    def measure(self, title: str = "") -> ClassificationReport:
        """Compare the labels of all images with the highest of their logits."""
        indices, source_labels, logits = collect_indexed_predictions(
            self._classifier.compute_logits, self.loader, title, self.processes
        )
        labels = self._numbers[source_labels]
        self._mistakes = find_mistakes(indices, labels, logits)
        return report_classification(labels, logits, self._classes)

    def draw(self, folder: Path) -> None:
        """Write the worst mistakes of the last measurement as small pictures, for the report of a run."""
        write_mistakes(folder, self._mistakes, self._classes, self.subset.source)
