"""Checkpoints that survive a crash: two safetensors files and a small JSON state, the same on every backend.

    FOLDER/step-00001234/model.safetensors       parameters and buffers, timm's names
                         optimizer.safetensors   moments, averages and counters; what low-rank updates are made of
                         images.safetensors      of a task: a key of each image that was trained on
                         state.json              kind, epoch, step, seed, config, data, versions, SHA-256 of the files

A checkpoint is written into a hidden temporary folder, flushed to disk and renamed: a folder that carries the final
name is complete. The newest one wins; any backend resumes what any other wrote. Loading executes nothing.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ehm import __version__
from ehm.errors import CheckpointError
from ehm.storage.arrays import Arrays, LearnerState
from ehm.storage.reading import describe_value, hash_file, read_json
from ehm.storage.writing import replace_folder, report_write_errors

__all__ = [
    "FORMAT",
    "Checkpoint",
    "checkpoint_path",
    "find_checkpoint",
    "find_value_range",
    "is_hub_folder",
    "newest_checkpoint",
    "open_checkpoint",
    "open_to_resume",
    "prune_checkpoints",
    "save_checkpoint",
]

FORMAT = 1
"""The format that is written, and the only one that is read."""
_MODEL = "model.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_IMAGES = "images.safetensors"
_STATE = "state.json"
_NAME = re.compile(r"step-\d{8,}")
_HUB_SETTINGS = ("config.json", "open_clip_config.json")
"""Files with the settings of an encoder in a folder of the Hugging Face Hub: transformers' or timm's, or OpenCLIP's."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder and its metadata, and its arrays, which are read when they are first used.

    Each file of arrays is read and compared with its SHA-256 at most once: pass the object on instead of opening the
    folder again. Reading a file that is missing or was altered raises CheckpointError.
    """

    folder: Path
    metadata: dict[str, Any]

    @property
    def kind(self) -> str:
        """The kind of model: ``pretrain``, ``tokenizer``, ``classifier``, ``segmenter``, ``detector``, ``embedder``."""
        return str(self.metadata["kind"])

    @property
    def model_sha256(self) -> str:
        """Hex digest of the file that holds the model's arrays."""
        return str(self.metadata["sha256"][_MODEL])

    @property
    def value_range(self) -> tuple[float, float] | None:
        """The ``data.range`` that was trained with, if there was one."""
        # tokenizers and checkpoints of earlier versions have no such key
        stored = self.metadata["config"].get("data", {}).get("range")
        if stored is None:
            return None
        return float(stored[0]), float(stored[1])

    @cached_property
    def model(self) -> Arrays:
        """Parameters and buffers."""
        return self._read_file(_MODEL)

    @cached_property
    def optimizer(self) -> Arrays:
        """The optimiser's moments and counters, and moving averages of the parameters."""
        return self._read_file(_OPTIMIZER)

    @cached_property
    def images(self) -> Arrays:
        """Keys of the images that were trained on; empty if the checkpoint keeps none."""
        if _IMAGES not in self.metadata["sha256"]:  # of a pretraining run, or written by an earlier version
            return {}
        return self._read_file(_IMAGES)

    @property
    def state(self) -> LearnerState:
        """All that a run needs to go on."""
        return LearnerState(self.model, self.optimizer)

    def take_state(self) -> LearnerState:
        """Return the state, and forget it: a run keeps its checkpoint open, and needs the memory for training."""
        state = self.state
        for name in ("model", "optimizer"):
            del self.__dict__[name]
        return state

    def _read_file(self, name: str) -> Arrays:
        file = self.folder / name
        if not file.is_file():
            raise CheckpointError(f"{file}: missing; the checkpoint is incomplete")
        try:
            # before anything is parsed: a truncated file could pass for one with other arrays
            if hash_file(file) != self.metadata["sha256"].get(name):
                raise CheckpointError(f"{file}: does not match the SHA-256 in {_STATE}; it was altered or damaged")
            return load_file(file)
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from None
        except SafetensorError as error:
            raise CheckpointError(f"{file}: not a safetensors file: {error}") from None


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open the checkpoint that ``path`` means: one itself, a file of it, a folder of them, or a run's output folder.

    Of several the newest is taken. Only metadata are read. Raises CheckpointError if there is no checkpoint, or one of
    another format.
    """
    folder = _find_folder(Path(path))
    return Checkpoint(folder, _read_metadata(folder))


def open_to_resume(path: str | Path) -> Checkpoint:
    """Open the checkpoint that ``path`` means and read its ``state``, to train on; nothing of it is read again.

    If anything of it was altered or damaged, the CheckpointError says whether another checkpoint lies beside it.
    """
    folder = _find_folder(Path(path))
    try:
        checkpoint = Checkpoint(folder, _read_metadata(folder))
        _ = checkpoint.state  # reads all arrays, so that damage is found here
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {_advise_without(folder)}") from None
    return checkpoint


def find_checkpoint(path: str | Path) -> Checkpoint | None:
    """Open the checkpoint that ``path`` means if it is a folder, or a file of a checkpoint; return None if it is not.

    It returns None for a folder in the layout of the Hugging Face Hub, too. Raises CheckpointError for other folders
    without a checkpoint.
    """
    path = Path(path)
    if is_hub_folder(path):
        return None
    if path.is_dir() or _is_part(path):
        return open_checkpoint(path)
    return None


def is_hub_folder(folder: Path) -> bool:
    """Tell whether ``folder`` has the settings of an encoder, as folders of the Hugging Face Hub do."""
    return any((folder / name).is_file() for name in _HUB_SETTINGS)


def find_value_range(path: str | Path) -> tuple[float, float] | None:
    """Return the ``data.range`` that the run or checkpoint at ``path`` was trained with; None if it has none.

    Files of weights and names of timm's say nothing about it.
    """
    checkpoint = find_checkpoint(path)
    if checkpoint is None:
        return None
    return checkpoint.value_range


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the complete checkpoint of the highest step in ``folder``, or None."""
    return max(_list_complete_checkpoints(folder), key=_read_step, default=None)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return where the checkpoint of ``step`` lies in ``folder``."""
    return folder / f"step-{step:08d}"


def save_checkpoint(folder: Path, state: LearnerState, metadata: dict[str, Any], images: Arrays | None = None) -> Path:
    """Write ``state`` as ``folder/step-…``, named by ``metadata["step"]``; a crash leaves the older ones complete.

    ``images`` are the keys of the images that a task was trained on. Raises WriteError, and removes what was written of
    this one, if the disk is full.
    """
    final = checkpoint_path(folder, metadata["step"])
    with report_write_errors(final):
        for stale in folder.glob(".step-*"):
            if stale.is_dir():  # a run that was killed left it
                shutil.rmtree(stale)
        # the same step is there already if a run was resumed from before it
        with replace_folder(final) as temporary:
            _write_files(temporary, state, metadata, images or {})
    return final


def prune_checkpoints(folder: Path, keep: int, written: Path | None = None) -> None:
    """Delete all but the newest ``keep`` checkpoints; the one just ``written`` is the newest, whatever its step.

    Of a link to a checkpoint elsewhere only the link is deleted, and what users put beside the checkpoints stays.
    """
    paths = sorted(_list_step_folders(folder), key=lambda path: (path == written, _read_step(path)))
    for path in paths[:-keep]:
        if path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path)


def _write_files(folder: Path, state: LearnerState, metadata: dict[str, Any], images: Arrays) -> None:
    """Write the files of a checkpoint into ``folder``."""
    files = {_MODEL: state.model, _OPTIMIZER: state.optimizer}
    if images:
        files[_IMAGES] = images
    hashes = {}
    for file, arrays in files.items():
        # safetensors writes an array's memory as it lies there, and takes it for row by row
        contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        save_file(contiguous, folder / file)
        hashes[file] = hash_file(folder / file)
    described = {
        "format": FORMAT,
        **metadata,
        "versions": {"ehm": __version__, "numpy": np.__version__, **metadata.get("versions", {})},
        "sha256": hashes,
    }
    # the last file, which makes the folder a checkpoint
    (folder / _STATE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def _list_complete_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in ``folder``; a folder without the state, which is written last, is no checkpoint."""
    return [path for path in _list_step_folders(folder) if (path / _STATE).is_file()]


def _list_step_folders(folder: Path) -> list[Path]:
    """Return the folders that have the name of a checkpoint; a copy or one that was put aside has another name."""
    return [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()]


def _read_step(path: Path) -> int:
    """Return the step in the name of a checkpoint's folder."""
    return int(path.name.removeprefix("step-"))


def _is_part(path: Path) -> bool:
    """Tell whether ``path`` is a file of a checkpoint, which has its state beside it."""
    return path.is_file() and (path.parent / _STATE).is_file()


def _find_folder(path: Path) -> Path:
    """Return the checkpoint's folder that ``path`` means; CheckpointError if there is none."""
    folder = path
    if _is_part(path):
        folder = path.parent
    if (folder / _STATE).is_file():
        return folder
    # a run's output folder has its checkpoints in a folder of their own
    found = newest_checkpoint(folder / "checkpoints") or newest_checkpoint(folder)
    if found is None:
        raise CheckpointError(f"{path}: no checkpoint there; expected a run's output folder or a folder step-NNNNNNNN")
    return found


def _read_metadata(folder: Path) -> dict[str, Any]:
    """Read ``state.json`` of a checkpoint; raises CheckpointError if it cannot be read, or has another format."""
    metadata = read_json(folder / _STATE, CheckpointError, "a checkpoint's state")
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{folder / _STATE}: should hold a section of keys and values; it was altered or damaged")
    if metadata.get("format") != FORMAT:
        found = describe_value(metadata.get("format"))
        raise CheckpointError(f"{folder}: checkpoint format {found}; this version of ehm reads {FORMAT}")
    for key, kind in (("step", int), ("sha256", dict)):
        if not isinstance(metadata.get(key), kind):
            raise CheckpointError(f"{folder / _STATE}: {key} is missing; it was altered or damaged")
    return metadata


def _advise_without(damaged: Path) -> str:
    """Say how to go on if the checkpoint ``damaged`` cannot be read: from the newest of the others beside it."""
    others = set(_list_complete_checkpoints(damaged.parent)) - {damaged}
    if not others:
        return "no other checkpoint lies beside it, so start a new run with another --out"
    return f"without {damaged}, --resume goes on from {max(others, key=_read_step).name} beside it: move it away"
