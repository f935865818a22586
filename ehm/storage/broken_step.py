"""A step whose loss was not finite, kept so that it can be taken again.

    RUN/broken/step-00000013/before/step-00000012/   the state before the 13th step, as a checkpoint
                             batch.safetensors       its images as they were fed, their indices, and its masks
                             step.json               its rates, and what came out of it

The folder is complete or absent, as a checkpoint is, and loading it executes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ehm.errors import CheckpointError, WriteError
from ehm.storage.arrays import LearnerState
from ehm.storage.checkpoint import Checkpoint, checkpoint_path, open_to_resume, save_checkpoint
from ehm.storage.reading import read_json
from ehm.storage.writing import replace_folder, report_write_errors, write_json

__all__ = ["BrokenStep", "find_broken_step", "read_broken_step", "save_broken_step"]

_BEFORE = "before"
_BATCH = "batch.safetensors"
_STEP = "step.json"


@dataclass(frozen=True)
class BrokenStep:
    """A step as it is kept: the checkpoint ``before`` it, its batch, and ``facts`` of ``step.json``.

    ``images`` are (B, H, W, 3) uint8, ``indices`` (B,) their numbers in the source, ``mask`` is (B * views, N).
    """

    before: Checkpoint
    images: NDArray[np.uint8]
    indices: NDArray[np.int64]
    mask: NDArray[np.bool_]
    facts: Mapping[str, Any]


def save_broken_step(
    folder: Path,
    state: LearnerState,
    metadata: dict[str, Any],
    images: NDArray[np.uint8],
    indices: NDArray[np.int64],
    mask: NDArray[np.bool_],
    facts: Mapping[str, Any],
) -> Path:
    """Write the step ``facts["step"]``, counted from 1, below ``folder``, and return where.

    ``metadata`` are those of a checkpoint of ``state``, which is the one before the step. Raises WriteError if the disk
    is full, and leaves nothing half-written.
    """
    final = checkpoint_path(folder, facts["step"])
    try:
        with replace_folder(final) as temporary:
            save_checkpoint(temporary / _BEFORE, state, metadata)
            with report_write_errors(final):
                save_file({"images": images, "indices": indices, "mask": mask}, temporary / _BATCH)
            write_json(temporary / _STEP, facts)
    except WriteError as error:
        # named as it would have been called, and not by its temporary name
        raise WriteError(final, error.reason, error.remedy, next_step="--resume meets the same step again") from None
    return final


def find_broken_step(folder: Path) -> Path:
    """Return the folder of the broken step that ``folder`` means: itself, or the newest below that of a run.

    Raises CheckpointError if there is none.
    """
    if (folder / _STEP).is_file():
        return folder
    for parent in (folder / "broken", folder):
        found = sorted(path.parent for path in parent.glob(f"step-*/{_STEP}"))
        if found:
            return found[-1]
    raise CheckpointError(f"{folder}: no broken step there; expected RUN/broken/step-NNNNNNNN, as a run names it")


def read_broken_step(folder: Path) -> BrokenStep:
    """Read what :func:`save_broken_step` wrote; raises CheckpointError if it is missing, incomplete or damaged."""
    facts = read_json(folder / _STEP, CheckpointError, "a broken step")
    file = folder / _BATCH
    try:
        arrays = load_file(file)
        return BrokenStep(
            before=open_to_resume(folder / _BEFORE),
            images=arrays["images"],
            indices=arrays["indices"],
            mask=arrays["mask"].astype(bool),
            facts={name: facts[name] for name in ("step", "loss", "rates", "processes")},
        )
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: is incomplete or was altered: {error}") from None
