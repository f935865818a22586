"""Detection: boxes, and masks, of the objects in an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from ehm.backends.base import ALONE, Backend, Detector, Processes
from ehm.config import DetectionConfig
from ehm.console import console
from ehm.data.folds import stratified_folds
from ehm.data.instances import MirrorTransform
from ehm.data.loader import Batch, Loader
from ehm.data.sources.base import Split
from ehm.data.sources.coco import CocoSource, open_coco
from ehm.data.subset import Subset
from ehm.errors import ConfigError, DataError
from ehm.storage.arrays import LearnerState
from ehm.storage.writing import replace_file
from ehm.tasks.detection.metrics import AveragePrecision, as_results, average_precision
from ehm.tasks.evaluate import Evaluation, Stored
from ehm.tasks.held_out import leave_out_first_weights, remember_images, select_part
from ehm.tasks.occurrences import count_objects

__all__ = ["Detection", "reopen"]

_PICTURES = 16
_SHOWN = 5


class Detection:
    """Implements :class:`ehm.training.supervised.Task`: training Mask R-CNN on objects in COCO's format."""

    kind = "detector"

    def __init__(self, config: DetectionConfig, backend: Backend, start: Path | None = None) -> None:
        self.config, self._processes = config, backend.processes
        self.train, val = _split(config, _open(config, "train"))
        self.classes = self.train.source.classes
        self.data = remember_images(config, self.train, val, self.classes, start, self._processes)
        self.val = leave_out_first_weights(val, self.data, config, self._processes)
        self.class_counts = count_objects(self.train, config.data)
        # a resumed run needs nothing but its checkpoint
        model = config.model if start is None else config.model.model_copy(update={"init": str(start)})
        self.learner: Detector = backend.create_detector(config.model_copy(update={"model": model}), len(self.classes))
        self.headline = f"{'Mask' if config.masks else 'Faster'} R-CNN on {config.model.init}"
        self.loader = Loader(
            _source(self.train),
            MirrorTransform(config.data.flip),
            batch_size=config.optim.batch_size,
            seed=config.run.seed,
            shuffle=True,
            drop_last=True,
            workers=config.data.workers,
            strict=config.data.strict,
            subset=self.train.selected,
            rank=self._processes.rank,
            world_size=self._processes.size,
        )
        self._val_loader = _eval_loader(self.val, config, self._processes)

    @property
    def stored(self) -> dict[str, Any]:
        """See :attr:`ehm.training.supervised.Task.stored`."""
        return self.config.model_dump(mode="json")

    @property
    def broken(self) -> Mapping[str, str]:
        """See :attr:`ehm.training.supervised.Task.broken`."""
        return self.loader.unreadable | self._val_loader.unreadable

    def step(self, batch: Batch, step: int, lr: float) -> Mapping[str, SupportsFloat]:
        """See :meth:`ehm.training.supervised.Task.step`."""
        images, targets = zip(*batch.images, strict=True)
        return self.learner.train_step(images, targets, lr, self.config.optim.weight_decay)

    def measure(self) -> AveragePrecision:
        """See :meth:`ehm.training.supervised.Task.measure`."""
        return _measure(self.learner, self._val_loader, self.val, self.config, self._processes)

    def close(self) -> None:
        """See :meth:`ehm.training.supervised.Task.close`."""
        self.loader.close()
        self._val_loader.close()


def reopen(
    stored: Stored, backend: Backend, config: str | Path | None, overrides: Sequence[str]
) -> Evaluation[AveragePrecision]:
    """The detector of a checkpoint, on the part of the images that ``config`` and ``overrides`` say.

    Raises DataError where the source has classes that the detector does not know; those that it knows besides count
    nowhere.
    """
    measuring = ("min_size", "max_size", "detections", "score_threshold")
    settings = stored.settings(DetectionConfig, config, overrides, measuring)
    classes = tuple(stored.meta["classes"])
    detector = backend.create_detector(settings, len(classes))
    detector.load(LearnerState(stored.arrays, {}))
    source = _open(settings, "train")
    part = select_part(
        stored,
        settings,
        source,
        lambda: _split(settings, source)[1],
        lambda: _open(settings, "val"),
        backend.processes,
    )
    unknown = [name for name in part.source.classes if name not in classes]
    if unknown:
        raise DataError(
            f"data.source {settings.data.source}: class {unknown[0]} is not among the detector's {len(classes)} "
            f"({', '.join(classes[:5])}{', …' if len(classes) > 5 else ''})"
        )
    loader = _eval_loader(part, settings, backend.processes)
    measure = partial(_measure, detector, loader, part, settings, backend.processes, classes, "evaluate")
    alone = backend.processes.size == 1  # drawing is one process's work, and several may share the parameters
    draw = partial(_draw, detector, part, classes) if alone else None
    return Evaluation(settings.data.source, part, measure, loader.unreadable, draw)


def _open(config: DetectionConfig, split: Split) -> CocoSource:
    return open_coco(config.data, split, config.masks)


def _split(config: DetectionConfig, source: CocoSource) -> tuple[Subset, Subset]:
    """What to train on, images with objects, and what to measure on: all images of the other part, or of the fold.

    Where the source has one part only, its folds have about equally many images of each class, an image being of its
    rarest.
    """
    name = config.data.source
    _say_unusable(source, name)
    usable = np.array([bool(source.trainable(index)) for index in range(len(source))])
    if not usable.any():
        raise DataError(f"data.source {name}: none of its {len(source)} images has an object to learn from")
    if source.split == "train":
        val = _open(config, "val")
        if val.classes != source.classes:
            raise DataError(f"data.source {name}: train and val do not have the same categories")
        return Subset(source, np.flatnonzero(usable), "train"), Subset(val, None, "val")
    try:
        fold_of = stratified_folds(_rarest(source), config.folds, seed=0)
    except ValueError as error:
        raise ConfigError(f"folds: {error}") from None
    title, held_out = f"fold {config.fold} of {config.folds}", fold_of == config.fold
    train = Subset(source, np.flatnonzero(usable & ~held_out), f"all but {title}")
    return train, Subset(source, np.flatnonzero(held_out), title)


def _rarest(source: CocoSource) -> NDArray[np.int64]:
    """Of each image the class that fewest images have; -1 where it has none."""
    present = [{source.numbers[each["category_id"]] for each in objects} for objects in source.annotations]
    counts = np.bincount([label for labels in present for label in labels], minlength=len(source.classes))
    return np.array([min(labels, key=lambda label: (counts[label], label), default=-1) for labels in present])


def _say_unusable(source: CocoSource, name: str) -> None:
    if not source.unusable:
        return
    console.print(f"data.source {name}: {len(source.unusable)} objects are left out of training:")
    for reason in source.unusable[:_SHOWN]:
        console.print(f"  {reason}")
    if len(source.unusable) > _SHOWN:
        console.print(f"  and {len(source.unusable) - _SHOWN} more")


def _source(part: Subset) -> CocoSource:
    assert isinstance(part.source, CocoSource)
    return part.source


def _eval_loader(part: Subset, config: DetectionConfig, processes: Processes = ALONE) -> Loader:
    """Every image of ``part`` once, in order; a share of them for each of ``processes``."""
    return Loader(
        _source(part),
        MirrorTransform(),
        batch_size=max(1, config.optim.batch_size // config.optim.accumulate // processes.size) * processes.size,
        seed=0,
        shuffle=False,
        drop_last=False,
        workers=config.data.workers,
        strict=config.data.strict,
        subset=part.selected,
        rank=processes.rank,
        world_size=processes.size,
    )


def _measure(
    detector: Detector,
    loader: Loader,
    part: Subset,
    config: DetectionConfig,
    processes: Processes,
    classes: tuple[str, ...] | None = None,
    title: str = "",
) -> AveragePrecision:
    """Average precision on all images of ``part`` that can be read; ``classes`` are the detector's, by default its own.

    All processes call this, each with its own share in ``loader``.
    """
    source = _source(part)
    classes = source.classes if classes is None else classes
    rows: dict[int, list[dict[str, Any]]] = {}
    batches = loader.batches(0, loader.steps_per_epoch)
    hidden = not (title and console.is_terminal)
    for batch in track(batches, title, loader.steps_per_epoch, console=console, disable=hidden):
        for index, found in zip(
            batch.indices.tolist(), detector.detect_objects([image for image, _ in batch.images]), strict=True
        ):
            rows[index] = as_results(index, found)
    found_by_index = {index: found for share in processes.gather_values(rows) for index, found in share.items()}
    numbers = {key: classes.index(source.classes[number]) for key, number in source.numbers.items()}
    measured = sorted(found_by_index)  # where a file is broken another image stood in for it, which counts once
    seen = {index: source.seen(index) for index in measured}
    return average_precision(
        [{**image, "id": index} for index, (image, _) in seen.items()],
        [
            {**each, "image_id": index, "category_id": numbers[each["category_id"]]}
            for index, (_, objects) in seen.items()
            for each in objects
        ],
        [row for index in measured for row in found_by_index[index]],
        classes,
        config.masks,
        config.detections,
    )


def _draw(detector: Detector, part: Subset, classes: tuple[str, ...], folder: Path) -> None:
    """Write pictures of what is found in the first images of ``part``."""
    from ehm.analysis.objects import draw_objects

    part = Subset(part.source, part.indices[:_PICTURES], "")
    loader = Loader(
        _source(part),
        MirrorTransform(),
        batch_size=1,
        seed=0,
        shuffle=False,
        drop_last=False,
        workers=0,
        subset=part.selected,
    )
    for number, batch in enumerate(loader.batches(0, loader.steps_per_epoch)):
        ((image, _),) = batch.images
        (found,) = detector.detect_objects([image])
        name = f"{number:02d}_{Path(part.source.name(int(batch.indices[0]))).stem}"  # folders may share names
        picture = draw_objects(image, found, classes)
        with replace_file(folder / "pictures" / f"{name}.png") as temporary:
            picture.save(temporary, format="PNG")
    console.print(f"Pictures: {folder / 'pictures'}")
