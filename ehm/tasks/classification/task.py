"""Classification: the whole image has one of C classes, or several of C labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import Backend, Classifier
from ehm.config import FinetuneConfig
from ehm.data import Batch, Loader, Source, Split, TrainTransform, open_source
from ehm.data.subset import Subset, find_targets, require_labels
from ehm.errors import ConfigError, DataError
from ehm.models.opening import take_weights
from ehm.storage.checkpoint import Checkpoint
from ehm.tasks.base import Task, load_learner, merge_config
from ehm.tasks.classes import count_labels, count_targets, number_classes
from ehm.tasks.classification.evaluation import ClassifierEvaluation, MultiLabelEvaluation
from ehm.tasks.classification.image_format import complete_format, refuse_augmentations
from ehm.tasks.classification.metrics import ClassificationReport
from ehm.tasks.classification.mixing import make_soft_targets, mix_images, smooth_labels
from ehm.tasks.classification.multi_label_metrics import DEFAULT_THRESHOLD, MultiLabelReport
from ehm.tasks.classification.weighting import balance_images, balance_labelled_images, weigh_classes, weigh_positives
from ehm.tasks.folds import divide_by_fold, require_same_classes, stratify_source
from ehm.training.loaders import make_train_loader

__all__ = ["Classification"]


class Classification(Task[FinetuneConfig, ClassificationReport | MultiLabelReport]):
    """Fine-tuning, or linear probing if ``config.frozen``, of one class an image or of several labels."""

    learner: Classifier

    def __init__(self, config: FinetuneConfig, backend: Backend, start: Checkpoint | None = None) -> None:
        init = config.model.init if start is None else str(start.folder)
        train, val = self.split_images(complete_format(config, init))
        super().__init__(config, backend, train, val, start)
        self._targets = find_targets(train.source)
        loss = _choose_loss(config, self._targets)
        self._is_binary = loss == "binary_cross_entropy"
        self.learner_config = self.learner_config.model_copy(update={"loss": loss})
        counts = self._count_classes()
        # cross entropy takes the weights of classes in its targets, binary cross entropy as an argument of the step
        self._class_weights = None if self._is_binary else weigh_classes(counts, config)
        self._positive_weights = weigh_positives(counts, len(train), config) if self._is_binary else None
        self.learner = backend.create_task_learner(self.learner_config, len(self.classes), self.take_first_weights())
        self.headline = f"{'Linear probing of' if config.frozen else 'Fine-tuning'} {config.model.init}"
        self.loader = self._make_loader()
        numbers = np.arange(len(self.classes))  # the classifier has the classes of the source, in the same order
        evaluation_class = ClassifierEvaluation if self._targets is None else MultiLabelEvaluation
        self.evaluation = evaluation_class(self.learner, self.classes, numbers, config, self.val, backend)

    @property
    def config_to_keep(self) -> dict[str, Any]:
        """The configuration as JSON with the keys of ``FinetuneConfig``: without those that only a probe has."""
        return self.config.model_dump(mode="json", include=set(FinetuneConfig.model_fields))

    @property
    def more_metadata(self) -> dict[str, Any]:
        """The thresholds of labels; their presence marks a classifier of several labels."""
        if not isinstance(self.evaluation, MultiLabelEvaluation):
            return {}
        # a checkpoint may be written before the first measurement has chosen thresholds
        thresholds = self.evaluation.last_thresholds or (DEFAULT_THRESHOLD,) * len(self.classes)
        return {"thresholds": list(thresholds)}

    def train_step(self, batch: Batch, step: int, lr: float) -> Mapping[str, SupportsFloat]:
        """Take an optimiser step on images that Mixup and CutMix have mixed."""
        augment = self.config.augment
        # seeded by the step, so that a resumed run draws the same numbers
        rng = np.random.default_rng([self.config.run.seed, step])
        images, targets = mix_images(batch.images, self._make_targets(batch), augment.mixup, augment.cutmix, rng)
        weight_decay = self.config.optim.weight_decay
        if self._positive_weights is not None:
            return self.learner.train_step(images, targets, lr, weight_decay, self._positive_weights)
        if self._class_weights is not None:
            # the loss is linear in its targets
            targets = targets * self._class_weights
        return self.learner.train_step(images, targets, lr, weight_decay)

    def _count_classes(self) -> NDArray[np.int64]:
        """Count the training images of each class (C,), and set the lines about these counts."""
        if self._targets is None:
            self.class_counts = count_labels(self.train, self.config.data)
            return np.bincount(self.train.labels, minlength=len(self.classes))
        self.class_counts = count_targets(self.train, self._targets, self.config.data, self.classes)
        counts: NDArray[np.int64] = self._targets[self.train.indices].sum(axis=0)
        return counts

    def _make_loader(self) -> Loader:
        config = self.config
        data = config.data
        inputs = self.learner.inputs
        refuse_augmentations(config, inputs.pixels)
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
            inputs.pixels,
        )
        chances = None
        if config.sampling == "balanced":
            if self._targets is None:
                chances = balance_images(self.train.labels)
            else:
                chances = balance_labelled_images(self._targets[self.train.indices])
        train = self.train
        return make_train_loader(
            train.source, transform, config, self.processes, subset=train.selected, chances=chances
        )

    def _make_targets(self, batch: Batch) -> NDArray[np.float32]:
        """Return the targets (B, C) of a batch, before any mixing."""
        smoothing = self.config.augment.label_smoothing
        if self._targets is not None:
            return smooth_labels(self._targets[batch.indices], smoothing)
        assert batch.labels is not None
        if self._is_binary:
            return smooth_labels(batch.labels[:, None] == np.arange(len(self.classes)), smoothing)
        return make_soft_targets(batch.labels, len(self.classes), smoothing)

    @classmethod
    def open_source(cls, config: FinetuneConfig, split: Split) -> Source:
        """Open images of classes."""
        return open_source(config.data, split)

    @classmethod
    def divide_source(cls, config: FinetuneConfig, source: Source) -> tuple[Subset[Source], Subset[Source]]:
        """Return the source's own parts, or hold out a fold of each class.

        Raises DataError if there are no labels, or if the parts disagree about the classes.
        """
        labels = None if find_targets(source) is not None else require_labels(source, config.data.source)
        if source.split == "train":
            val = cls.open_source(config, "val")
            if find_targets(val) is None:
                require_labels(val, config.data.source)
            require_same_classes(source, val, config.data.source)
            return Subset(source, None, "train"), Subset(val, None, "val")
        return divide_by_fold(source, stratify_source(source, labels, config), config)

    @classmethod
    def open_evaluation(
        cls, checkpoint: Checkpoint, backend: Backend, config: str | Path | None, overrides: Sequence[str]
    ) -> ClassifierEvaluation | MultiLabelEvaluation:
        """Prepare to measure the classifier of a checkpoint; DataError if the source lacks labels or has other ones."""
        settings = merge_config(FinetuneConfig, checkpoint, config, overrides)
        settings = complete_format(settings, settings.model.init)
        classes = tuple(checkpoint.metadata["classes"])
        classifier = backend.create_task_learner(settings, len(classes), take_weights(checkpoint))
        load_learner(classifier, checkpoint)
        subset = cls.select_subset(checkpoint, settings, backend.processes)
        thresholds = checkpoint.metadata.get("thresholds")
        _require_same_kind(subset.source, thresholds is not None, settings)
        # matched by name, because other images may have the classes in another order, or only some of them
        numbers = number_classes(subset.source.classes, classes, settings.data.source, "classifier")
        if thresholds is None:
            return ClassifierEvaluation(classifier, classes, numbers, settings, subset, backend)
        return MultiLabelEvaluation(classifier, classes, numbers, settings, subset, backend, thresholds)


def _choose_loss(config: FinetuneConfig, targets: NDArray[np.bool_] | None) -> str:
    """Return the loss that ``config`` names; ``auto`` depends on whether images have one class or several labels."""
    if targets is not None and config.loss == "cross_entropy":
        raise ConfigError(
            f"loss cross_entropy: data.source {config.data.source} has several labels an image, which only "
            "binary_cross_entropy learns; leave it auto"
        )
    if config.loss != "auto":
        return config.loss
    return "cross_entropy" if targets is None else "binary_cross_entropy"


def _require_same_kind(source: Source, has_several: bool, config: FinetuneConfig) -> None:
    """Raise DataError unless images have what the classifier was trained on: several labels, or one class each."""
    if not has_several:
        require_labels(source, config.data.source)
    elif find_targets(source) is None:
        raise DataError(
            f"data.source {config.data.source}: its images do not have several labels, as the classifier expects; "
            "data.columns.label and data.columns.separator say where a table has them"
        )
