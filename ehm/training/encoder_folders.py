"""Write the encoder at the end of a run into folders that timm and transformers load by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ehm.console import console
from ehm.models.handover.card import CardFacts
from ehm.models.handover.folders import TIMM_FOLDER, TRANSFORMERS_FOLDER, write_encoder_folders
from ehm.models.weights import Weights
from ehm.training.history import (
    describe_runs,
    find_base_model,
    find_data_license,
    list_datasets,
    list_maskings,
    read_runs,
)
from ehm.training.run import Run

__all__ = ["write_run_folders"]

_LIBRARIES = {TIMM_FOLDER: "timm", TRANSFORMERS_FOLDER: "transformers"}
"""The library that loads each folder."""


def write_run_folders(run: Run[Any], weights: Weights, checkpoint: Path, encoder_file: Path | None = None) -> None:
    """Write the encoder in ``weights`` into folders of ``run``, which ends with ``checkpoint``, and print their paths.

    ``encoder_file`` is a file with the same arrays, if there is one. Only the main process calls this.
    """
    runs = read_runs(str(checkpoint))
    facts = CardFacts(
        training=describe_runs(runs),
        base_model=find_base_model(runs),
        datasets=list_datasets(runs),
        tags=list_maskings(runs),
        data_license=find_data_license(runs),
    )
    written, notes = write_encoder_folders(run.folder, weights, facts, encoder_file)
    if written:
        libraries = " and ".join(_LIBRARIES[path.name] for path in written)
        console.print(f"Encoder to load by name in {libraries}: {', '.join(map(str, written))}")
    for note in notes:
        console.print(f"  {note}")
