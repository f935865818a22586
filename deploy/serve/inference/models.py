"""The models of a server: loaded, verified and warmed up, and replaced while they serve.

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
from ehm.deploy.bundle.manifest import MANIFEST, Manifest
from ehm.deploy.bundle.preprocessing import eval_transform
from ehm.deploy.predict.handler import HandlerT
from ehm.deploy.predict.predictor import Predictor
from ehm.deploy.predict.runtime import PROVIDERS
from ehm.deploy.serve.inference.batching import Batcher, Images, Result
from ehm.deploy.serve.inference.metrics import Metrics
from ehm.deploy.serve.settings import Settings
from ehm.errors import ConfigError, EhmError, ExportError, RequestError
from ehm.processors import count_available_processors

__all__ = ["Models", "ServedModel", "name_bundles"]

_MOST_AREA = 4
"""The largest image for a network of any size, in areas of the manifest's ``image_size``: the memory that attention
takes grows with the area squared."""

_MOST_RUNS = 4
"""The most batches of a model that run at once on a CPU: each takes memory for what the network computes."""

_LOG = logging.getLogger("ehm.serve")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
Signature = frozenset[tuple[str, int, int, int]] | None
"""The name, inode, time and size of each file of a bundle; None if there is none."""


def name_bundles(bundles: Sequence[str | Path]) -> dict[str, Path]:
    """Return the folder of each name from texts ``NAME=DIR``, or ``DIR`` whose last part is the name.

    Raises ConfigError for a name that is empty, taken, or not fit for a URL.
    """
    if not bundles:
        raise ConfigError("DIR: expected at least one bundle, which ehm export writes")
    found: dict[str, Path] = {}
    for text in map(str, bundles):
        name, equals, folder = text.partition("=")
        if equals and not name:
            raise ConfigError(f"{text}: the name is empty; expected NAME={folder}, or {folder or 'DIR'} alone")
        if not (equals and _NAME.fullmatch(name)):  # the path itself may hold an equals sign
            name = Path(text).resolve().name
            folder = text
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{text}: {name!r} is no name for a model; give one of letters and digits: NAME={folder}")
        if name in found:
            raise ConfigError(f"{text}: there is a model {name!r} already; give it another name: NAME={folder}")
        found[name] = Path(folder)
    return found


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
        transform = eval_transform(self.manifest.preprocessing)
        left, top, right, bottom = transform.part(width, height)
        (resized_width, resized_height), _ = transform.layout(right - left, bottom - top)
        return max(height * width, resized_height * resized_width)


@dataclass
class _Slot:
    """The folder behind a name, and the model that is served from there; ``reason`` is why there is none."""

    path: Path
    model: ServedModel | None = None
    wanted: bool = True
    tried: Signature = None
    """The files that were loaded, or refused."""
    last_seen: Signature = None
    """The files at the last check: those that still change are being copied."""
    reason: str = ""


class Models(Mapping[str, ServedModel]):
    """The models that are served, by name. Every method runs on the event loop."""

    def __init__(self, bundles: Mapping[str, Path], settings: Settings, metrics: Metrics) -> None:
        self._slots = {name: _Slot(path) for name, path in bundles.items()}
        self._settings = settings
        self._metrics = metrics
        # one model at a time: loading takes memory for both the old and the new one
        self._loading = asyncio.Lock()

    def __getitem__(self, name: str) -> ServedModel:
        model = self._slots[name].model
        if model is None:
            raise KeyError(name)
        return model

    def __iter__(self) -> Iterator[str]:
        for name, slot in self._slots.items():
            if slot.model is not None:
                yield name

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def ready(self) -> bool:
        """True if every model that is wanted is there."""
        return all(slot.model is not None for slot in self._slots.values() if slot.wanted)

    def find(self, name: str, version: str | None = None) -> ServedModel:
        """Return the model of that name; raises RequestError (404) that names those there are."""
        if name not in self:
            raise RequestError(404, f"there is no model {name[:60]!r}; there are {', '.join(self) or 'none'}")
        if version not in (None, self[name].version):
            raise RequestError(404, f"{name} has the version {self[name].version}, no other")
        return self[name]

    def list_index(self) -> list[dict[str, str]]:
        """Return ``$repository_index_response`` of Triton's repository extension."""
        entries = []
        for name, slot in self._slots.items():
            entry = {"name": name, "version": "", "state": "UNAVAILABLE", "reason": slot.reason}
            if slot.model:
                entry |= {"version": slot.model.version, "state": "READY"}
            entries.append(entry)
        return entries

    async def load(self, name: str, asked: bool = True) -> None:
        """Load a model, or load it again; raises EhmError, and then the one that was served goes on.

        A load that nobody ``asked`` for gives way to an unloading that came while it read.
        """
        slot = self._find_slot(name)
        async with self._loading:
            try:
                model = None
                while model is None or slot.tried != _read_signature(slot.path):  # replaced while it was read
                    slot.tried = _read_signature(slot.path)
                    model = await asyncio.to_thread(self._open, name, slot.path)
                _require_same_task(slot.model, model)
            except EhmError as error:
                slot.reason = str(error)
                self._metrics.count_load(name, succeeded=False)
                raise
            if not (asked or slot.wanted):
                return
            slot.model = model
            slot.wanted = True
            slot.reason = ""
            self._metrics.count_load(name, succeeded=True)
            labels = (model.version, model.manifest.task, self._settings.precision, model.predictor.provider)
            self._metrics.show_model(name, labels)
            _LOG.info("%s", _describe_model(model, self._settings))

    async def load_all(self) -> None:
        """Load every model; raises EhmError at the first that cannot be."""
        for name in self._slots:
            await self.load(name)

    def unload(self, name: str) -> None:
        """Stop serving a model; the requests that it has accepted are answered."""
        slot = self._find_slot(name)
        slot.model = None
        slot.wanted = False
        slot.reason = "unloaded"
        self._metrics.show_model(name, None)

    async def refresh(self, every: bool = False) -> None:
        """Load the bundles that were replaced since the last check, or ``every`` one; failures are only logged."""
        for name, slot in self._slots.items():
            now = _read_signature(slot.path)
            settled = now == slot.last_seen  # no file is being copied
            slot.last_seen = now
            if slot.wanted and settled and now is None and slot.tried is not None:
                slot.tried = None  # so that it is said once, and loaded when it is there again
                _LOG.warning("%s: there is no bundle at %s any more; what was loaded goes on", name, slot.path)
            if slot.wanted and (every or (settled and now is not None and now != slot.tried)):
                try:
                    await self.load(name, asked=False)
                except Exception as error:  # whatever is wrong with a new bundle, the old one goes on
                    _LOG.error("%s: the new bundle is refused, the old one goes on: %s", name, error)

    async def watch(self) -> None:
        """Check for replaced bundles again and again."""
        while True:
            await asyncio.sleep(self._settings.poll)
            await self.refresh()

    def _find_slot(self, name: str) -> _Slot:
        if name not in self._slots:
            raise RequestError(404, f"there is no model {name[:60]!r}; there are {', '.join(self._slots)}")
        return self._slots[name]

    def _open(self, name: str, path: Path) -> ServedModel:
        """Load and warm up a bundle, which takes seconds: not on the event loop."""
        settings = self._settings
        bundle = Bundle.open(path)
        predictor = Predictor(bundle, settings.device, settings.precision, settings.threads)
        self._warm_up(predictor)
        batcher = Batcher(
            predictor.run_batch,
            max_batch=settings.max_batch,
            max_delay=settings.max_delay / 1000,
            queue=settings.queue,
            metrics=self._metrics.for_model(name),
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
        # the first run of a size takes memory and chooses kernels
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
    return min(_MOST_RUNS, threads or count_available_processors())


def _read_signature(path: Path) -> Signature:
    """Return what changes when a bundle is replaced, whole or file by file in any order; None if there is none."""
    entries = []
    try:
        for file in (path / MANIFEST, *path.glob("*.onnx*")):
            stat = file.stat()
            # the inode changes if a file is replaced by one of the same size and time
            entries.append((file.name, stat.st_ino, stat.st_mtime_ns, stat.st_size))
    except OSError:
        return None
    return frozenset(entries)


def _require_same_task(old: ServedModel | None, new: ServedModel) -> None:
    """Raise ExportError if a new bundle would answer its clients with something else than the old one did."""
    if old is not None and old.manifest.task != new.manifest.task:
        raise ExportError(
            f"{new.bundle.path}: its task is {new.manifest.task}, that of the model in service {old.manifest.task}; "
            "serve it under another name, or unload the old one first"
        )


def _describe_model(model: ServedModel, settings: Settings) -> str:
    outputs = model.predictor.handler.describe_outputs()
    return f"{model.name}: {outputs}; {settings.precision} on {model.predictor.provider}; version {model.version}"
