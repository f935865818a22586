"""Checkpoints that survive a crash: two safetensors files and a small JSON state, the same on every backend.

    FOLDER/step-00001234/model.safetensors       parameters and buffers, timm's names
                         optimizer.safetensors   moments, averages and counters
                         images.safetensors      of a task: a key of each image that was trained on
                         state.json              kind, epoch, step, seed, config, data, versions, SHA-256 of the files

A checkpoint is written into a hidden temporary folder, flushed to disk and renamed: a folder that carries the final
name is complete. The newest one wins; any backend resumes what any other wrote. Loading executes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ehm import __version__
from ehm.errors import CheckpointError
from ehm.storage.arrays import Arrays, LearnerState
from ehm.storage.reading import describe_value, read_json
from ehm.storage.writing import report_write_errors

__all__ = [
    "FORMAT",
    "describe",
    "flush",
    "look",
    "name",
    "newest",
    "prune",
    "read",
    "read_images",
    "read_model",
    "resolve",
    "save",
    "sha256",
    "stored_range",
]

FORMAT = 1
_MODEL, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_IMAGES = "images.safetensors"


def save(folder: Path, state: LearnerState, meta: dict[str, Any], images: Arrays | None = None) -> Path:
    """Write ``state`` as ``folder/step-…``, named by ``meta["step"]``; a crash leaves the older ones whole.

    ``images`` are the keys of the images that a task was trained on. Raises WriteError, and removes what was written of
    this one, if the disk is full.
    """
    final = name(folder, meta["step"])
    temporary = folder / f".{final.name}"
    replaced = folder / f".{final.name}-replaced"
    with report_write_errors(final):
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(".step-*"):
            shutil.rmtree(stale)
        try:
            _write_folder(temporary, state, meta, images or {})
            if final.exists():  # the same step once more: a run was resumed from before it
                final.rename(replaced)
                temporary.rename(final)
                shutil.rmtree(replaced)
            else:
                temporary.rename(final)
            flush(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            if replaced.exists() and not final.exists():
                replaced.rename(final)
            raise
    return final


def _write_folder(folder: Path, state: LearnerState, meta: dict[str, Any], images: Arrays) -> None:
    """Write the files of a checkpoint into the new ``folder``, and wait until they are on the disk."""
    folder.mkdir()
    files = {_MODEL: state.model, _OPTIMIZER: state.optimizer}
    if images:
        files[_IMAGES] = images
    for file, arrays in files.items():
        save_file({key: np.asarray(value, order="C") for key, value in arrays.items()}, folder / file)
    described = {
        "format": FORMAT,
        **meta,
        "versions": {"ehm": __version__, "numpy": np.__version__, **meta.get("versions", {})},
        "sha256": {file: sha256(folder / file) for file in files},
    }
    (folder / _STATE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    for path in (*folder.iterdir(), folder):
        flush(path)


def name(folder: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` lies in ``folder``."""
    return folder / f"step-{step:08d}"


def newest(folder: Path) -> Path | None:
    """The complete checkpoint of the highest step in ``folder``, or None."""
    complete = [path for path in folder.glob("step-*") if (path / _STATE).is_file()]
    return max(complete, key=lambda path: path.name, default=None)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints."""
    for path in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(path)


def resolve(path: str | Path) -> Path:
    """The checkpoint that ``path`` means: one itself, a folder of them, or a run's output folder."""
    path = Path(path)
    if (path / _STATE).is_file():
        return path
    found = newest(path / "checkpoints") or newest(path)
    if found is None:
        raise CheckpointError(f"{path}: no checkpoint there; expected a run's output folder or a folder step-NNNNNNNN")
    return found


def read(path: str | Path) -> tuple[LearnerState, dict[str, Any]]:
    """Return state and description of the checkpoint that ``path`` means, to train on.

    Raises CheckpointError if a file of it was altered, which says whether another checkpoint lies beside it.
    """
    path = resolve(path)
    try:
        meta = describe(path)
        return LearnerState(_load(path, _MODEL, meta), _load(path, _OPTIMIZER, meta)), meta
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {_advise_without(path)}") from None


def _advise_without(damaged: Path) -> str:
    """Say how to go on if the checkpoint ``damaged`` cannot be read: from the newest of the others beside it."""
    others = [path for path in damaged.parent.glob("step-*") if path != damaged and (path / _STATE).is_file()]
    if not others:
        return "no other checkpoint lies beside it, so start a new run with another --out"
    return f"without {damaged}, --resume goes on from {max(others).name} beside it: move it away"


def read_model(path: str | Path) -> tuple[Arrays, dict[str, Any]]:
    """Like :func:`read`, the model's arrays alone."""
    path = resolve(path)
    meta = describe(path)
    return _load(path, _MODEL, meta), meta


def read_images(path: Path, meta: dict[str, Any]) -> Arrays:
    """Return the keys of the images that the checkpoint folder ``path`` was trained on; none if it keeps none.

    Raises CheckpointError if their file is missing or was altered.
    """
    return _load(path, _IMAGES, meta) if _IMAGES in (meta.get("sha256") or {}) else {}


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def describe(path: Path) -> dict[str, Any]:
    """What ``state.json`` of the checkpoint folder ``path`` says; raises CheckpointError where it cannot be read."""
    meta = read_json(path / _STATE, CheckpointError, "a checkpoint's state")
    if not isinstance(meta, dict):
        raise CheckpointError(f"{path / _STATE}: should hold a section of keys and values; it was altered or damaged")
    if meta.get("format") != FORMAT:
        found = describe_value(meta.get("format"))
        raise CheckpointError(f"{path}: checkpoint format {found}; this version of ehm reads {FORMAT}")
    missing = [key for key in ("step", "sha256") if key not in meta]
    if missing:
        raise CheckpointError(f"{path / _STATE}: {missing[0]} is missing; it was altered or damaged")
    return meta


def look(place: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """Folder and description of what ``place`` means, a run, a checkpoint or its file of weights, without any of these.

    None where nothing of ours lies there; CheckpointError for a folder without checkpoint.
    """
    place = Path(place)
    if not place.is_dir() and not (place.is_file() and (place.parent / _STATE).is_file()):
        return None
    folder = resolve(place.parent if place.is_file() else place)
    return folder, describe(folder)


def stored_range(place: str | Path) -> tuple[float, float] | None:
    """Return the ``data.range`` that the run or checkpoint at ``place`` was trained with; None where it has none.

    Files of weights and names of timm's say nothing about it.
    """
    found = look(place)
    if found is None:
        return None
    stated = found[1]["config"].get("data", {}).get("range")
    return None if stated is None else (float(stated[0]), float(stated[1]))


def _load(path: Path, name: str, meta: dict[str, Any]) -> Arrays:
    file = path / name
    if not file.is_file():
        raise CheckpointError(f"{file}: missing; the checkpoint is incomplete")
    if sha256(file) != meta["sha256"][name]:
        raise CheckpointError(f"{file}: does not match the SHA-256 in {_STATE}; it was altered or damaged")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"{file}: not a safetensors file: {error}") from None


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
