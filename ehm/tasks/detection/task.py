"""Detection: find the boxes, and optionally the masks, of the objects in an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import Backend, Detector
from ehm.config import DetectionConfig
from ehm.console import console
from ehm.data import Batch, Loader, Source, Split
from ehm.data.instances import MirrorTransform
from ehm.data.sources.coco import CocoSource
from ehm.data.sources.detection_layouts import open_objects
from ehm.data.subset import Subset
from ehm.errors import DataError
from ehm.models.opening import take_weights
from ehm.storage.checkpoint import Checkpoint
from ehm.storage.writing import replace_file
from ehm.tasks.base import Evaluation, Task, load_learner, merge_config
from ehm.tasks.classes import count_objects, require_known_classes
from ehm.tasks.detection.metrics import DetectionReport, Row, encode_detections, report_detection
from ehm.tasks.folds import divide_by_fold, require_same_classes, stratify
from ehm.tasks.predictions import track_batches
from ehm.training.loaders import make_eval_loader, make_train_loader

__all__ = ["Detection"]

_PICTURES = 16
"""Images that an evaluation draws, at most."""
_SHOWN_REASONS = 5
"""Reasons for which objects are left out that are printed, at most."""


class Detection(Task[DetectionConfig, DetectionReport]):
    """Training Mask R-CNN on objects in COCO's or YOLO's format."""

    measured_keys = ("min_size", "max_size", "detections", "score_threshold")

    learner: Detector

    def __init__(self, config: DetectionConfig, backend: Backend, start: Checkpoint | None = None) -> None:
        train, val = self.split_images(config)
        super().__init__(config, backend, train, val, start)
        self.class_counts = count_objects(train, config.data)
        self.learner = backend.create_task_learner(self.learner_config, len(self.classes), self.take_first_weights())
        self.headline = f"{'Mask' if config.masks else 'Faster'} R-CNN on {config.model.init}"
        transform = MirrorTransform(config.data.flip)
        self.loader = make_train_loader(train.source, transform, config, self.processes, subset=train.selected)
        self.evaluation = DetectorEvaluation(self.learner, self.classes, config, self.val, backend)

    def train_step(self, batch: Batch, step: int, lr: float) -> Mapping[str, SupportsFloat]:
        """Take an optimiser step on images and their objects."""
        images, targets = zip(*batch.images, strict=True)
        return self.learner.train_step(images, targets, lr, self.config.optim.weight_decay)

    @classmethod
    def open_source(cls, config: DetectionConfig, split: Split) -> CocoSource:
        """Open images with annotations in COCO's or YOLO's format."""
        return open_objects(config.data, split, config.masks)

    @classmethod
    def divide_source(cls, config: DetectionConfig, source: Source) -> tuple[Subset[CocoSource], Subset[CocoSource]]:
        """Return the images with objects to train on, and all images of the other part, or of the fold, to measure on.

        If the source has no parts, it is divided into folds that are stratified by the rarest class of each image.
        """
        assert isinstance(source, CocoSource)
        name = config.data.source
        _print_unusable(source, name)
        # images without objects are not trained on, but measured, because detections in them are false
        trainable = np.zeros(len(source), bool)
        for index in range(len(source)):
            trainable[index] = bool(source.list_trainable_objects(index))
        if not trainable.any():
            raise DataError(f"data.source {name}: none of its {len(source)} images has an object to learn from")
        if source.split == "train":
            val = cls.open_source(config, "val")
            require_same_classes(source, val, name, "categories")
            return Subset(source, np.flatnonzero(trainable), "train"), Subset(val, None, "val")
        return divide_by_fold(source, stratify(_find_rarest_classes(source), config), config, trainable)

    @classmethod
    def open_evaluation(
        cls, checkpoint: Checkpoint, backend: Backend, config: str | Path | None, overrides: Sequence[str]
    ) -> DetectorEvaluation:
        """Prepare to measure the detector of a checkpoint.

        Raises DataError if the source has classes that the detector does not know. Further classes of the detector are
        not measured.
        """
        settings = merge_config(DetectionConfig, checkpoint, config, overrides, cls.measured_keys)
        classes = tuple(checkpoint.metadata["classes"])
        detector = backend.create_task_learner(settings, len(classes), take_weights(checkpoint))
        load_learner(detector, checkpoint)
        subset = cls.select_subset(checkpoint, settings, backend.processes)
        require_known_classes(subset.source.classes, classes, settings.data.source, "detector")
        return DetectorEvaluation(detector, classes, settings, subset, backend)


class DetectorEvaluation(Evaluation[DetectionReport]):
    """Measures the average precision of a detector of ``classes``, which include all classes of the source."""

    def __init__(
        self,
        detector: Detector,
        classes: tuple[str, ...],
        config: DetectionConfig,
        subset: Subset[CocoSource],
        backend: Backend,
    ) -> None:
        loader = make_eval_loader(subset.source, MirrorTransform(), config, backend.processes, subset=subset.selected)
        super().__init__(config.data.source, subset, loader, backend.processes)
        self._detector = detector
        self._classes = classes
        self._config = config
        self._source = subset.source

    def measure(self, title: str = "") -> DetectionReport:
        """Compare the detections in all images that can be read with their annotations."""
        rows_here: dict[int, list[Row]] = {}
        for batch in track_batches(self.loader, title):
            detections = self._detector.detect_objects([image for image, _ in batch.images])
            for index, found in zip(batch.indices.tolist(), detections, strict=True):
                # by index, because the loader reads another image twice in place of an unreadable one
                rows_here[index] = encode_detections(index, found)
        rows: dict[int, list[Row]] = {}
        for share in self.processes.gather_values(rows_here):
            rows |= share

        images = []
        truth = []
        found_rows = []
        class_numbers = self._number_categories()
        # sorted, so that the order does not depend on the number of processes
        for index in sorted(rows):
            image, objects = self._source.turn_annotations(index)
            images.append({**image, "id": index})
            for row in objects:
                truth.append({**row, "image_id": index, "category_id": class_numbers[row["category_id"]]})
            found_rows += rows[index]
        return report_detection(images, truth, found_rows, self._classes, self._config.masks, self._config.detections)

    def _number_categories(self) -> dict[Any, int]:
        """Return the detector's class number of each category of the source."""
        numbers = {}
        for category, number in self._source.numbers.items():
            numbers[category] = self._classes.index(self._source.classes[number])
        return numbers

    def draw(self, folder: Path) -> None:
        """Write pictures of the detections in the first images."""
        from ehm.analysis.objects import draw_objects

        if self.processes.size > 1:
            return  # only one process calls this, but each may hold a share of the parameters
        loader = Loader(
            self._source,
            MirrorTransform(),
            batch_size=1,
            seed=0,
            shuffle=False,
            drop_last=False,
            workers=0,
            subset=self.subset.indices[:_PICTURES],
        )
        for number, batch in enumerate(loader.batches(0, loader.steps_per_epoch)):
            ((image, _),) = batch.images
            (found,) = self._detector.detect_objects([image])
            picture = draw_objects(image, found, self._classes)
            # numbered, because images in different folders may have the same name
            name = f"{number:02d}_{Path(self._source.name(int(batch.indices[0]))).stem}"
            with replace_file(folder / "pictures" / f"{name}.png") as temporary:
                picture.save(temporary, format="PNG")
        console.print(f"Pictures: {folder / 'pictures'}")


def _find_rarest_classes(source: CocoSource) -> NDArray[np.int64]:
    """Return for each image the class of its objects that fewest images have; -1 if it has no objects."""
    present = []
    counts = np.zeros(len(source.classes), np.int64)
    for objects in source.annotations:
        labels = {source.numbers[row["category_id"]] for row in objects}
        present.append(labels)
        counts[list(labels)] += 1
    # of equally rare classes the first one, so that the order of objects in the file does not matter
    rarest = [min(labels, key=lambda label: (counts[label], label), default=-1) for labels in present]
    return np.array(rarest)


def _print_unusable(source: CocoSource, name: str) -> None:
    if not source.unusable:
        return
    console.print(f"data.source {name}: {len(source.unusable)} objects are left out of training:")
    for reason in source.unusable[:_SHOWN_REASONS]:
        console.print(f"  {reason}")
    if len(source.unusable) > _SHOWN_REASONS:
        console.print(f"  and {len(source.unusable) - _SHOWN_REASONS} more")
