"""One worker of a bulk prediction: it holds the network, and turns parts of the images into Parquet files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from ehm.data.sources.base import FileSource, Source, StoredSource
from ehm.deploy.predict.bulk.job import BulkJob
from ehm.deploy.predict.bulk.table import write_rows
from ehm.deploy.predict.handler import NamedImage, PredictionOptions
from ehm.deploy.predict.prediction import Prediction
from ehm.deploy.predict.predictor import Predictor

__all__ = ["PartSummary", "PartWorker"]

_IMAGES_AHEAD = 256
"""Images that are asked of a store at once, while those before them are predicted."""


@dataclass(frozen=True)
class PartSummary:
    """A part that is done: how many images it has, how many of these could not be read, and the time that it took.

    ``seconds`` have passed, and ``processor_seconds`` are those of all threads together.
    """

    part: int
    images: int
    unreadable: int
    seconds: float
    processor_seconds: float


class PartWorker:
    """A loaded network with the images that it is for."""

    def __init__(self, job: BulkJob, source: Source) -> None:
        self._job = job
        self._source = source
        self.predictor = Predictor(job.bundle, job.device, job.precision, job.threads)

    def predict_part(self, part: int) -> PartSummary:
        """Write the Parquet file of a part; its name is there only once it is complete."""
        start = time.perf_counter()
        processor_start = time.process_time()
        numbers = self._job.list_part_images(part)
        predictions: list[Prediction] = []
        self._fetch_ahead(numbers[:_IMAGES_AHEAD])
        for first in range(0, len(numbers), _IMAGES_AHEAD):
            self._fetch_ahead(numbers[first + _IMAGES_AHEAD : first + 2 * _IMAGES_AHEAD])
            predictions += self._predict_images(numbers[first : first + _IMAGES_AHEAD])
        write_rows(self._job.name_part_file(part), self.predictor.manifest, predictions, self._find_labels(numbers))
        unreadable = sum(prediction.error is not None for prediction in predictions)
        seconds = time.perf_counter() - start
        return PartSummary(part, len(numbers), unreadable, seconds, time.process_time() - processor_start)

    def _fetch_ahead(self, numbers: range) -> None:
        """Let images begin to come from a store, which takes long to begin to answer."""
        if numbers and isinstance(self._source, StoredSource):
            self._source.fetch_ahead(numbers)

    def _predict_images(self, numbers: range) -> Iterator[Prediction]:
        images = [NamedImage(self._source.name(number), partial(self._load, number)) for number in numbers]
        options = PredictionOptions(self._job.top, threads=self._job.threads)
        return self.predictor.handler.predict_images(self.predictor, images, options)

    def _load(self, number: int, enough: tuple[int, int] | None) -> Any:
        """Read an image; a large JPEG in a file is decoded at a reduced size, as `ehm predict` of files does."""
        if isinstance(self._source, FileSource):
            return self.predictor.decode(self._source.name(number), enough)
        return self._source.load(number)

    def _find_labels(self, numbers: range) -> list[str | None] | None:
        """Return the names of the classes that the source says the images have, None if it says nothing."""
        labels = self._source.labels
        if labels is None:
            return None
        classes = self._source.classes
        return [classes[label] if label >= 0 else None for label in labels[numbers.start : numbers.stop].tolist()]
