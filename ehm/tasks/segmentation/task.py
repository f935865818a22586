"""Semantic segmentation: every pixel has one of C classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import SupportsFloat

import numpy as np

from ehm.backends.base import Backend, Processes, Segmenter
from ehm.config import SegmentationConfig
from ehm.data import Batch, Source, Split
from ehm.data.segmentation import CropTransform, ScaleTransform
from ehm.data.sources.mask_counts import MaskCounts, explain_255
from ehm.data.sources.pairs import PairSource, check_pairs, open_pairs
from ehm.data.subset import Subset
from ehm.errors import ConfigError, DataError
from ehm.models.opening import take_weights
from ehm.storage.checkpoint import Checkpoint
from ehm.tasks.base import Evaluation, Task, load_learner, merge_config
from ehm.tasks.classes import describe_masks
from ehm.tasks.folds import divide_by_fold, draw_folds
from ehm.tasks.predictions import track_batches
from ehm.tasks.segmentation.metrics import SegmentationReport, count_pixels, report_segmentation
from ehm.training.loaders import make_single_image_loader, make_train_loader

__all__ = ["Segmentation"]

_SHOWN_MASKS = 3
"""Wrong masks that a message names, at most."""
_SHOWN_CLASSES = 5
"""Classes that a message names, at most."""


class Segmentation(Task[SegmentationConfig, SegmentationReport]):
    """Training UperNet on images and masks."""

    measured_keys = ("inference",)

    learner: Segmenter

    def __init__(self, config: SegmentationConfig, backend: Backend, start: Checkpoint | None = None) -> None:
        train, val = self.split_images(config)
        super().__init__(config, backend, train, val, start)
        # not for a resumed run, which has checked the same masks before
        if config.data.check and start is None:
            train_counts = _check_masks(train, config, self.processes)
            val_counts = _check_masks(self.val, config, self.processes)
            if wrong := explain_255(train_counts.merge([val_counts]), self.classes):
                raise DataError(f"data.source {config.data.source}: {wrong}")
            self.class_counts = describe_masks(train, train_counts, self.classes, config.data)
        self.learner = backend.create_task_learner(self.learner_config, len(self.classes), self.take_first_weights())
        self.headline = f"Training UperNet on {config.model.init}"

        data = config.data
        # crops are padded with the mean colour, which is 0 once it is normalised
        red, green, blue = (min(255, round(255 * value)) for value in self.learner.inputs.mean)
        transform = CropTransform(
            config.crop_size,
            data.scale,
            data.ratio,
            data.max_share,
            data.flip,
            data.photometric,
            (red, green, blue),
        )
        self.loader = make_train_loader(train.source, transform, config, self.processes, subset=train.selected)
        self.evaluation = SegmenterEvaluation(self.learner, self.classes, config, self.val, backend)

    def train_step(self, batch: Batch, step: int, lr: float) -> Mapping[str, SupportsFloat]:
        """Take an optimiser step on crops of images and of their masks."""
        # CropTransform returns the mask as a fourth channel of the image, so that a sample is one array
        images = batch.images[..., :3]
        labels = batch.images[..., 3]
        return self.learner.train_step(images, labels, lr, self.config.optim.weight_decay)

    @classmethod
    def open_source(cls, config: SegmentationConfig, split: Split) -> PairSource:
        """Open pairs of images and masks."""
        return open_pairs(config.data, split)

    @classmethod
    def divide_source(cls, config: SegmentationConfig, source: Source) -> tuple[Subset[PairSource], Subset[PairSource]]:
        """Return the source's own parts, or hold out a fold that is drawn at random."""
        assert isinstance(source, PairSource)
        if source.split == "train":
            val = _with_classes(cls.open_source(config, "val"), source.classes, config.data.source)
            return Subset(source, None, "train"), Subset(val, None, "val")
        if config.folds > len(source):
            raise ConfigError(f"folds {config.folds}: there are only {len(source)} images")
        return divide_by_fold(source, draw_folds(len(source), config), config)

    @classmethod
    def open_evaluation(
        cls, checkpoint: Checkpoint, backend: Backend, config: str | Path | None, overrides: Sequence[str]
    ) -> SegmenterEvaluation:
        """Prepare to measure the segmenter of a checkpoint; raises DataError if the source has other classes."""
        settings = merge_config(SegmentationConfig, checkpoint, config, overrides, cls.measured_keys)
        classes = tuple(checkpoint.metadata["classes"])
        subset: Subset[PairSource] = cls.select_subset(checkpoint, settings, backend.processes)
        subset = replace(subset, source=_with_classes(subset.source, classes, settings.data.source))
        if settings.data.check:
            _check_masks(subset, settings, backend.processes)
        segmenter = backend.create_task_learner(settings, len(classes), take_weights(checkpoint))
        load_learner(segmenter, checkpoint)
        return SegmenterEvaluation(segmenter, classes, settings, subset, backend)


class SegmenterEvaluation(Evaluation[SegmentationReport]):
    """Measures a segmenter of ``classes``: it segments one image after the other, in the original size of its mask."""

    def __init__(
        self,
        segmenter: Segmenter,
        classes: tuple[str, ...],
        config: SegmentationConfig,
        subset: Subset[PairSource],
        backend: Backend,
    ) -> None:
        processes = backend.processes
        transform = ScaleTransform(config.data.scale)
        loader = make_single_image_loader(subset.source, transform, config, processes, subset=subset.selected)
        super().__init__(config.data.source, subset, loader, processes)
        self._segmenter = segmenter
        self._classes = classes

    def measure(self, title: str = "") -> SegmentationReport:
        """Count the pixels of all images; raises DataError if none of them has a class."""
        share = set(self.loader.list_indices(0, self.loader.steps_per_epoch))
        measured: set[int] = set()
        counts = np.zeros((len(self._classes), len(self._classes)), np.int64)
        for batch in track_batches(self.loader, title):
            for index, (image, labels) in zip(batch.indices.tolist(), batch.images, strict=True):
                # the loader reads another image in place of an unreadable one: it counts once, and only in the process
                # that has it in its share
                if index in measured or index not in share:
                    continue
                measured.add(index)
                height, width = labels.shape
                counts += count_pixels(
                    labels, self._segmenter.segment_image(image, (height, width)), len(self._classes)
                )
        shares = self.processes.gather_values((counts, len(measured)))
        all_counts, all_images = zip(*shares, strict=True)
        counts = np.sum(all_counts, axis=0)
        if not counts.sum():
            raise DataError(f"data.source {self.source_name}: no pixel of {self.subset.title} has a class to measure")
        return report_segmentation(counts, self._classes, sum(all_images))


def _with_classes(source: PairSource, classes: tuple[str, ...], name: str) -> PairSource:
    """Return ``source`` with ``classes``; raises DataError if its own are different.

    It may have fewer if they have no names: they are then the numbers up to the largest one in the masks, which may be
    smaller in this part than in another.
    """
    if source.classes == classes or (not source.named and len(source.classes) <= len(classes)):
        return replace(source, classes=classes)
    raise DataError(
        f"data.source {name}: its {len(source.classes)} classes ({', '.join(source.classes[:_SHOWN_CLASSES])}, …) are "
        f"not the {len(classes)} that are trained ({', '.join(classes[:_SHOWN_CLASSES])}, …)"
    )


def _check_masks(subset: Subset[PairSource], config: SegmentationConfig, processes: Processes) -> MaskCounts:
    """Count the pixels in masks; DataError if masks do not fit their images or the classes. All processes call this."""
    counts = MaskCounts()
    share = subset.indices[processes.rank :: processes.size].tolist()
    wrong_here = check_pairs(subset.source, share, config.data.workers, counts)
    shares = processes.gather_values((wrong_here, counts))
    wrong: list[str] = []
    for messages, _ in shares:
        wrong += messages
    if wrong:
        more = f"; and {len(wrong) - _SHOWN_MASKS} more" if len(wrong) > _SHOWN_MASKS else ""
        raise DataError(f"data.source {config.data.source}: {'; '.join(wrong[:_SHOWN_MASKS])}{more}")
    return MaskCounts().merge([theirs for _, theirs in shares])
