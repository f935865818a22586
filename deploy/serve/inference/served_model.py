"""A bundle in service: loaded, verified and warmed up, with the limits of what it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import Manifest
from ehm.deploy.bundle.preprocessing import create_eval_transform
from ehm.deploy.predict.handler import HandlerT
from ehm.deploy.predict.predictor import Predictor
from ehm.deploy.predict.runtime import PROVIDERS
from ehm.deploy.serve.inference.batching import Batcher, Images, Result
from ehm.deploy.serve.inference.metrics import Metrics
from ehm.deploy.serve.settings import Settings
from ehm.errors import ExportError, RequestError
from ehm.processors import count_available_processors

__all__ = ["ServedModel", "count_parallel_runs", "open_served_model"]

_MOST_AREA = 4
"""The largest image for a network of any size, in areas of the manifest's ``image_size``: the memory that attention
takes grows with the area squared."""

_MOST_RUNS = 4
"""The most batches of a model that run at once on a CPU: each takes memory for what the network computes."""


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A bundle in service. ``version`` is that of its network's files; ``max_pixels`` bounds a run."""

    name: str
    version: str
    predictor: Predictor
    batcher: Batcher
    max_pixels: int

    @property
    def bundle(self) -> Bundle:
        """The bundle that was loaded."""
        return self.predictor.bundle

    @property
    def manifest(self) -> Manifest:
        """The inputs, outputs, labels and preprocessing of the model."""
        return self.predictor.manifest

    def require_handler(self, kind: type[HandlerT]) -> HandlerT:
        """Return the handler of the bundle if it is of that kind; RequestError (400) says what the model lacks."""
        handler = self.predictor.handler
        if not isinstance(handler, kind):
            raise RequestError(400, f"the model {self.name} gives no {kind.missing}")
        return handler

    async def infer(self, images: Images, names: Sequence[str], deadline: float) -> Result:
        """Return outputs of prepared ``images`` (B, ...), by default all; errors as of :meth:`Batcher.infer`."""
        known = self.manifest.output_names
        for name in names:
            if name not in known:
                raise RequestError(400, f"the model {self.name} has no output {name!r}, only {', '.join(known)}")
        together = None if self.predictor.handler.takes_batches else 1
        if self.manifest.input.layout == "NHWC":
            # the graph resizes all images of a run at once, and holds them all
            together = max(1, int(self.max_pixels / self._count_resized_pixels(*images.shape[1:3])))
        return await self.batcher.infer(images, names or known, deadline, together)

    def check_size(self, height: int, width: int) -> None:
        """Refuse (413) an image that resizing would blow up: proportions are kept, so a thin one grows very long."""
        if self._count_resized_pixels(height, width) > self.max_pixels:
            raise RequestError(
                413, f"an image of {width} x {height} takes more than {self.max_pixels} pixels once resized"
            )

    def check_tensor(self, shape: Sequence[int]) -> None:
        """Refuse (413) images (B, ...) that take too much memory, each of them, of a network that takes any size."""
        if self.manifest.input.layout == "NHWC":
            self.check_size(*shape[1:3])
        elif isinstance(self.manifest.input.shape[2], str):
            height, width = shape[2:]
            own_h, own_w = self.manifest.preprocessing.image_size
            if height * width > _MOST_AREA * own_h * own_w:
                raise RequestError(
                    413,
                    f"an image of {width} x {height} has more than {_MOST_AREA} times the pixels of {own_w} x {own_h}",
                )

    def _count_resized_pixels(self, height: int, width: int) -> int:
        """Return the pixels of an image as sent or as resized, whichever are more."""
        transform = create_eval_transform(self.manifest.preprocessing)
        left, top, right, bottom = transform.find_part(width, height)
        (resized_width, resized_height), _ = transform.find_layout(right - left, bottom - top)
        return max(height * width, resized_height * resized_width)


def open_served_model(name: str, path: Path, settings: Settings, metrics: Metrics) -> ServedModel:
    """Load and warm up a bundle, which takes seconds: not on the event loop.

    Raises ExportError if the bundle is damaged or its network does not run.
    """
    bundle = Bundle.open(path)
    predictor = Predictor(bundle, settings.device, settings.precision, settings.threads)
    _warm_up(predictor, settings.max_batch)
    runs = count_parallel_runs(predictor, settings.threads)
    run_beside = None
    if 1 < runs == (settings.threads or count_available_processors()):
        # a core for each run: with a thread of its own it waits for nobody, where runs that share the threads of one
        # session wait for each other
        single_threaded = Predictor(bundle, settings.device, settings.precision, threads=1)
        _warm_up(single_threaded, settings.max_batch)
        run_beside = single_threaded.run_batch
    batcher = Batcher(
        predictor.run_batch,
        max_batch=settings.max_batch,
        max_delay=settings.max_delay / 1000,  # milliseconds
        queue=settings.queue,
        metrics=metrics.for_model(name),
        runs=runs,
        run_beside=run_beside,
    )
    return ServedModel(name, predictor.version, predictor, batcher, settings.max_pixels)


def count_parallel_runs(predictor: Predictor, threads: int) -> int:
    """Return how many batches of a model may run at once.

    An accelerator takes one after the other. On a CPU a run seldom fills all cores, so several share them: a lone
    request still has all cores, and under load each run has about one of its own, which wastes least.
    """
    if predictor.provider != PROVIDERS["cpu"].name:
        return 1
    return min(_MOST_RUNS, threads or count_available_processors())


def _warm_up(predictor: Predictor, max_batch: int) -> None:
    """Run one image and a whole batch, so that no request pays for what a runtime does at first."""
    record = predictor.manifest.input
    height, width = predictor.manifest.preprocessing.image_size
    channels = predictor.manifest.preprocessing.channels
    shape = (height, width, channels) if record.layout == "NHWC" else (channels, height, width)
    sizes = [1]
    if predictor.handler.takes_batches:
        sizes.append(max_batch)
    # the first run of a size takes memory and chooses kernels
    for size in sizes:
        try:
            predictor.run(np.zeros((size, *shape), record.dtype))
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own
            raise ExportError(f"{predictor.bundle.path}: its network does not run: {error}") from None
