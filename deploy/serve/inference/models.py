"""The models that a server has: loaded, verified and warmed up, replaced while they serve.

A request keeps the `ServedModel` that it began with until it is answered, so that a replaced one answers what it has
accepted and is freed with its last request.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import Manifest
from ehm.deploy.bundle.preprocessing import eval_transform
from ehm.deploy.predict.handler import HandlerT
from ehm.deploy.predict.predictor import Predictor
from ehm.deploy.predict.runtime import PROVIDERS
from ehm.deploy.serve.inference.batching import Batcher, Images, Result
from ehm.deploy.serve.inference.metrics import Metrics
from ehm.deploy.serve.settings import Settings
from ehm.errors import ConfigError, EhmError, ExportError, RequestError
from ehm.processors import available_processors

__all__ = ["Models", "ServedModel", "name_bundles"]

_AREA = 4
"""Of an image for a network of any size, at most, in areas of the manifest's ``image_size``: the memory that attention
takes grows with the area squared."""

_RUNS = 4
"""Batches of a model that run at once on a CPU, at most: each takes memory for what the network computes."""

_LOG = logging.getLogger("ehm.serve")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
Signature = frozenset[tuple[str, int, int, int]] | None


def name_bundles(bundles: Sequence[str | Path]) -> dict[str, Path]:
    """``NAME=DIR``, or ``DIR`` whose last part is the name, as a table; raises ConfigError."""
    if not bundles:
        raise ConfigError("DIR: expected at least one bundle, which ehm export writes")
    found: dict[str, Path] = {}
    for text in map(str, bundles):
        name, equals, folder = text.partition("=")
        if equals and not name:
            raise ConfigError(f"{text}: the name is empty; expected NAME={folder}, or {folder or 'DIR'} alone")
        if not (equals and _NAME.fullmatch(name)):
            name, folder = Path(text).resolve().name, text
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{text}: {name!r} is no name for a model; give one of letters and digits: NAME={folder}")
        if name in found:
            raise ConfigError(f"{text}: there is a model {name!r} already; give it another name: NAME={folder}")
        found[name] = Path(folder)
    return found


@dataclass(frozen=True, eq=False)
class ServedModel:
    """One bundle in service. ``version`` is that of its network's files; ``max_pixels`` bounds a run."""

    name: str
    version: str
    predictor: Predictor
    batcher: Batcher
    max_pixels: int

    @property
    def bundle(self) -> Bundle:
        """What it was loaded from."""
        return self.predictor.bundle

    @property
    def manifest(self) -> Manifest:
        """Its inputs, outputs, labels and preprocessing."""
        return self.predictor.manifest

    def require_handler(self, kind: type[HandlerT]) -> HandlerT:
        """Return the handler of the bundle if it is of that kind; RequestError (400) says what the model lacks."""
        handler = self.predictor.handler
        if not isinstance(handler, kind):
            raise RequestError(400, f"the model {self.name} gives no {kind.missing}")
        return handler

    async def infer(self, images: Images, names: Sequence[str], deadline: float) -> Result:
        """Prepared ``images`` (B, ...) -> those outputs, all by default; errors as of :meth:`Batcher.infer`."""
        known = [output.name for output in self.manifest.outputs]
        missing = [name for name in names if name not in known]
        if missing:
            raise RequestError(400, f"the model {self.name} has no output {missing[0]!r}, only {', '.join(known)}")
        together = None if self.predictor.handler.takes_batches else 1
        if self.manifest.input.layout == "NHWC":  # the graph resizes, all images of a run at once
            together = max(1, int(self.max_pixels / self._resized(*images.shape[1:3])))
        return await self.batcher.infer(images, names or known, deadline, together)

    def check_size(self, height: int, width: int) -> None:
        """Refuse (413) an image that resizing would blow up: proportions are kept, so a thin one grows very long."""
        if self._resized(height, width) > self.max_pixels:
            raise RequestError(
                413, f"an image of {width} x {height} takes more than {self.max_pixels} pixels once resized"
            )

    def check_tensor(self, shape: Sequence[int]) -> None:
        """Refuse (413) images (B, ...) that take too much memory, each of them, of a network that takes any size."""
        if self.manifest.input.layout == "NHWC":
            self.check_size(*shape[1:3])
        elif isinstance(self.manifest.input.shape[2], str):
            (height, width), (own_h, own_w) = shape[2:], self.manifest.preprocessing.image_size
            if height * width > _AREA * own_h * own_w:
                raise RequestError(
                    413, f"an image of {width} x {height} has more than {_AREA} times the pixels of {own_w} x {own_h}"
                )

    def _resized(self, height: int, width: int) -> int:
        """Pixels of an image as sent or as resized, whichever are more."""
        transform = eval_transform(self.manifest.preprocessing)
        left, top, right, bottom = transform.part(width, height)
        resized, _ = transform.layout(right - left, bottom - top)
        return max(height * width, resized[0] * resized[1])


@dataclass
class _Place:
    """A name, the folder behind it, and what is served from there."""

    path: Path
    model: ServedModel | None = None
    wanted: bool = True
    seen: Signature = None
    """What was loaded, or refused."""
    looked: Signature = None
    """What was there at the last look: files that still change are being copied."""
    reason: str = ""


class Models(Mapping[str, ServedModel]):
    """What is served, by name. Every method runs on the event loop."""

    def __init__(self, bundles: Mapping[str, Path], settings: Settings, metrics: Metrics) -> None:
        self._places = {name: _Place(path) for name, path in bundles.items()}
        self._settings = settings
        self._metrics = metrics
        self._loading = asyncio.Lock()

    def __getitem__(self, name: str) -> ServedModel:
        model = self._places[name].model
        if model is None:
            raise KeyError(name)
        return model

    def __iter__(self) -> Iterator[str]:
        return (name for name, place in self._places.items() if place.model is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def ready(self) -> bool:
        """Whether every model that is wanted is there."""
        return all(place.model is not None for place in self._places.values() if place.wanted)

    def find(self, name: str, version: str | None = None) -> ServedModel:
        """The model of that name; raises RequestError (404) that names those there are."""
        if name not in self:
            raise RequestError(404, f"there is no model {name[:60]!r}; there are {', '.join(self) or 'none'}")
        if version not in (None, self[name].version):
            raise RequestError(404, f"{name} has the version {self[name].version}, no other")
        return self[name]

    def index(self) -> list[dict[str, str]]:
        """``$repository_index_response`` of Triton's repository extension."""
        return [
            {
                "name": name,
                "version": place.model.version if place.model else "",
                "state": "READY" if place.model else "UNAVAILABLE",
                "reason": place.reason,
            }
            for name, place in self._places.items()
        ]

    async def load(self, name: str, asked: bool = True) -> None:
        """Load, or load again; raises EhmError, and what was served goes on being served.

        A load that nobody ``asked`` for gives way to an unloading that came while it read.
        """
        place = self._place(name)
        async with self._loading:
            try:
                model = None
                while model is None or place.seen != _signature(place.path):  # replaced while it was read
                    place.seen = _signature(place.path)
                    model = await asyncio.to_thread(self._open, name, place.path)
                _same_task(place.model, model)
            except EhmError as error:
                place.reason = str(error)
                self._metrics.loaded(name, well=False)
                raise
            if not (asked or place.wanted):
                return
            place.model, place.wanted, place.reason = model, True, ""
            self._metrics.loaded(name, well=True)
            manifest, provider = model.manifest, model.predictor.provider
            self._metrics.show(name, (model.version, manifest.task, self._settings.precision, provider))
            _LOG.info("%s", _said(model, self._settings))

    async def load_all(self) -> None:
        """Load every model; raises EhmError at the first that cannot be."""
        for name in self._places:
            await self.load(name)

    def unload(self, name: str) -> None:
        """Serve a model no longer; what it has accepted is answered."""
        place = self._place(name)
        place.model, place.wanted, place.reason = None, False, "unloaded"
        self._metrics.show(name, None)

    async def refresh(self, every: bool = False) -> None:
        """Load what was replaced since it was last looked at, or ``every`` model; failures are only logged."""
        for name, place in self._places.items():
            now = _signature(place.path)
            same, place.looked = now == place.looked, now
            if place.wanted and same and now is None and place.seen is not None:
                place.seen = None  # so that it is said once, and loaded when it is there again
                _LOG.warning("%s: there is no bundle at %s any more; what was loaded goes on", name, place.path)
            if place.wanted and (every or (same and now is not None and now != place.seen)):
                try:
                    await self.load(name, asked=False)
                except Exception as error:  # whatever is wrong with a new bundle, the old one goes on
                    _LOG.error("%s: the new bundle is refused, the old one goes on: %s", name, error)

    async def watch(self) -> None:
        """Refresh again and again."""
        while True:
            await asyncio.sleep(self._settings.poll)
            await self.refresh()

    def _place(self, name: str) -> _Place:
        if name not in self._places:
            raise RequestError(404, f"there is no model {name[:60]!r}; there are {', '.join(self._places)}")
        return self._places[name]

    def _open(self, name: str, path: Path) -> ServedModel:
        settings = self._settings
        bundle = Bundle.open(path)
        predictor = Predictor(bundle, settings.device, settings.precision, settings.threads)
        self._warm_up(predictor)
        batcher = Batcher(
            predictor.run_batch,
            max_batch=settings.max_batch,
            max_delay=settings.max_delay / 1000,
            queue=settings.queue,
            metrics=self._metrics.model(name),
            runs=_runs_at_once(predictor, settings.threads),
        )
        return ServedModel(name, bundle.version(settings.precision), predictor, batcher, settings.max_pixels)

    def _warm_up(self, predictor: Predictor) -> None:
        """Run one image and a whole batch, so that no request pays for what a runtime does at first."""
        record = predictor.manifest.input
        height, width = predictor.manifest.preprocessing.image_size
        size = (height, width, 3) if record.layout == "NHWC" else (3, height, width)
        sizes = [1]
        if predictor.handler.takes_batches:
            sizes.append(self._settings.max_batch)
        for batch in sizes:
            try:
                predictor.run(np.zeros((batch, *size), record.dtype))
            except Exception as error:  # ONNX Runtime's exceptions share no base of their own
                raise ExportError(f"{predictor.bundle.path}: its network does not run: {error}") from None


def _runs_at_once(predictor: Predictor, threads: int) -> int:
    """Return how many batches of a model may run at once.

    An accelerator takes one after the other. On a CPU a run seldom fills all cores, so several share them: a lone
    request still has all cores, and under load each run has about one of its own, which wastes least.
    """
    if predictor.provider != PROVIDERS["cpu"].name:
        return 1
    return min(_RUNS, threads or available_processors())


def _signature(path: Path) -> Signature:
    """What changes when a bundle is replaced, whole or file by file in any order; None while there is none."""
    manifest = path / "manifest.json"
    try:
        found = [(file.name, file.stat()) for file in (manifest, *path.glob("*.onnx*"))]
    except OSError:
        return None
    return frozenset((name, stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in found)


def _same_task(old: ServedModel | None, new: ServedModel) -> None:
    if old is not None and old.manifest.task != new.manifest.task:
        raise ExportError(
            f"{new.bundle.path}: its task is {new.manifest.task}, that of the model in service {old.manifest.task}; "
            "serve it under another name, or unload the old one first"
        )


def _said(model: ServedModel, settings: Settings) -> str:
    outputs = model.predictor.handler.describe_outputs()
    return f"{model.name}: {outputs}; {settings.precision} on {model.predictor.provider}; version {model.version}"
