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

from ehm.deploy.bundle.manifest import MANIFEST, OFFLINE_MODEL
from ehm.deploy.serve.inference.metrics import Metrics
from ehm.deploy.serve.inference.served_model import ServedModel, open_served_model
from ehm.deploy.serve.settings import Settings
from ehm.errors import ConfigError, EhmError, ExportError, RequestError

__all__ = ["Models", "name_bundles"]

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
        wanted = [slot for slot in self._slots.values() if slot.wanted]
        return all(slot.model is not None for slot in wanted)

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
                    model = await asyncio.to_thread(open_served_model, name, slot.path, self._settings, self._metrics)
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
            labels = (model.version, model.manifest.task, model.predictor.network, model.predictor.provider)
            self._metrics.show_model(name, labels)
            _LOG.info("%s", _describe_model(model))

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


def _read_signature(path: Path) -> Signature:
    """Return what changes when a bundle is replaced, whole or file by file in any order; None if there is none."""
    entries = []
    try:
        for file in (path / MANIFEST, *path.glob("*.onnx*"), *path.glob(OFFLINE_MODEL)):
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


def _describe_model(model: ServedModel) -> str:
    outputs = model.predictor.handler.describe_outputs()
    return f"{model.name}: {outputs}; {model.predictor.network} on {model.predictor.provider}; version {model.version}"
