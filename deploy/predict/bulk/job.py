"""A bulk prediction: which images go into which Parquet file, and which of these files are already there.

FOLDER/_job.json            what was predicted, by what; another job may not write here
       part-000000.parquet  the predictions of one part of the images, complete or absent
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ehm.config import DataConfig, load_config
from ehm.config.section import Section
from ehm.data import open_source
from ehm.data.sources.base import Source
from ehm.data.sources.identity import SourceIdentity, identify_source
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import Manifest, Precision
from ehm.errors import ConfigError, DataError
from ehm.storage.reading import read_json
from ehm.storage.writing import write_json

__all__ = ["BulkJob", "claim_folder", "hash_names", "open_images", "reopen_images"]

_JOB_FILE = "_job.json"
"""Readers of a folder of Parquet files leave out names that begin like this."""
_BINDING = {
    "images": "a number of images of",
    "identity": "images of the hash",
    "network": "the network",
    "version": "weights of the hash",
    "part_size": "--part-size",
    "top": "--top",
}
"""The entries of _job.json that must stay as they are, and what they are called."""


@dataclass(frozen=True)
class BulkJob:
    """The settings of a bulk prediction, which every worker gets a copy of.

    ``overrides`` are keys of ``data``. ``images``, whose ``names`` have that hash, are divided into parts of
    ``part_size``; ``threads`` are those of a worker, which read images and run the network.
    """

    source: str
    overrides: tuple[str, ...]
    images: int
    names: str
    bundle: Path
    device: str
    precision: Precision
    top: int
    out: Path
    part_size: int
    threads: int

    @property
    def parts(self) -> int:
        """The number of Parquet files."""
        return math.ceil(self.images / self.part_size)

    def list_part_images(self, part: int) -> range:
        """Return the numbers of a part's images."""
        return range(part * self.part_size, min((part + 1) * self.part_size, self.images))

    def name_part_file(self, part: int) -> Path:
        """Return the Parquet file of a part."""
        return self.out / f"part-{part:06d}.parquet"

    def list_missing_parts(self) -> list[int]:
        """Return the parts without a file."""
        return [part for part in range(self.parts) if not self.name_part_file(part).exists()]

    def remove_debris(self) -> None:
        """Remove what workers that were killed left half-written."""
        for file in self.out.glob(".*-part-*.parquet"):
            file.unlink(missing_ok=True)


class _BulkConfig(Section):
    """The keys that ``--set`` takes: where the images come from, and how they are read."""

    data: DataConfig = DataConfig()


def open_images(source: str, overrides: Sequence[str], manifest: Manifest) -> Source:
    """Open all images of ``source``, anything that data.source takes, with ``overrides`` as ``data.KEY=VALUE``.

    Raises ConfigError for an unknown key, and DataError without images.
    """
    data = load_config(_BulkConfig, None, overrides).data
    pixels = manifest.preprocessing.pixels
    # as the network was trained to see them
    changes: dict[str, Any] = {"source": source, "channels": pixels.channels, "depth": pixels.depth}
    if data.range is None:
        changes |= {"range": pixels.range, "window": pixels.window}
    return open_source(data.model_copy(update=changes))


def reopen_images(job: BulkJob) -> Source:
    """Open the images of a job on another machine; raises DataError if they are others there."""
    source = open_images(job.source, job.overrides, Bundle.open(job.bundle).manifest)
    if hash_names(source) != job.names:
        raise DataError(
            f"{job.source}: has other images on {platform.node()} ({len(source):,}) than where the job began"
        )
    return source


def hash_names(source: Source) -> str:
    """Return the SHA-256 of the names of all images, in their order."""
    digest = hashlib.sha256()
    for number in range(len(source)):
        digest.update(os.fsencode(source.name(number)) + b"\0")  # no name contains a zero byte
    return digest.hexdigest()


def claim_folder(job: BulkJob, bundle: Bundle, source: Source) -> None:
    """Write ``_job.json``, or see that the one in the folder says the same; raises ConfigError if it does not."""
    identity = identify_source(source)
    found = _describe_job(job, bundle, identity)
    file = job.out / _JOB_FILE
    has_parts = any(job.out.glob("*.parquet"))
    if has_parts and not file.exists():
        raise ConfigError(f"--out {job.out}: holds Parquet files of something else; choose another folder")
    if not has_parts:
        write_json(file, found)
        return
    stored = read_json(file, ConfigError, "the settings of a bulk prediction")
    if not isinstance(stored, dict):
        raise ConfigError(f"{file}: not the settings of a bulk prediction; choose another folder, or remove it")
    for key, name in _BINDING.items():
        if stored.get(key) != found[key]:
            raise ConfigError(
                f"--out {job.out}: holds predictions with {name} {_show(stored.get(key))}, and this is "
                f"{_show(found[key])}; choose another folder, or remove it"
            )


def _describe_job(job: BulkJob, bundle: Bundle, identity: SourceIdentity) -> Mapping[str, Any]:
    """Return what _job.json says: its folder may be moved, and so may the images and the bundle."""
    network = job.device if job.device.startswith("om") else job.precision
    version = bundle.offline_version() if job.device.startswith("om") else bundle.version(job.precision)
    values = asdict(job) | {"bundle": str(job.bundle), "out": str(job.out)}
    return values | {
        "identity": f"{identity.files[:16]}-{identity.sample[:16]}",
        "network": network,
        "version": version,
    }


def _show(value: Any) -> str:
    return "unknown" if value is None else str(value)
