"""Folders that a job sees: directories of the host, or claims of persistent volumes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from ehm.errors import ConfigError

__all__ = ["Volume", "find_volume", "parse_volume"]


@dataclass(frozen=True)
class Volume:
    """``source`` as ``path`` inside the container; ``source`` is a folder of the host, or a claim's name."""

    source: str
    path: str
    is_read_only: bool = False

    @property
    def is_host_folder(self) -> bool:
        """Return whether the source is a folder of the machine that the job runs on."""
        return self.source.startswith("/")


def parse_volume(text: str) -> Volume:
    """Read ``SOURCE:PATH`` or ``SOURCE:PATH:ro``; raises ConfigError for anything else."""
    parts = text.split(":")
    source = parts[0]
    path = parts[1] if len(parts) > 1 else ""
    is_complete = len(parts) == 2 or (len(parts) == 3 and parts[2] in ("ro", "rw"))
    if not is_complete or not source or not path.startswith("/"):
        raise ConfigError(f"--volume {text}: expected SOURCE:/PATH, or SOURCE:/PATH:ro to forbid writing")
    return Volume(source, path, parts[-1] == "ro")


def find_volume(path: str, volumes: Iterable[Volume]) -> Volume | None:
    """Return the volume that holds ``path`` of the container, the innermost one, or None."""
    holding = [volume for volume in volumes if PurePosixPath(path).is_relative_to(volume.path)]
    return max(holding, key=lambda volume: len(volume.path), default=None)
