"""The training behind an exported checkpoint, in sentences for its model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ehm.deploy.bundle.manifest import Source
from ehm.errors import CheckpointError
from ehm.storage.checkpoint import open_checkpoint

__all__ = ["describe_training", "name_source", "read_runs"]

_WEIGHT_FILES = ("encoder.safetensors", "model.safetensors")
"""Files in the folder of a run or of a checkpoint, which name it as well."""
_SCRATCH = (None, "scratch")


def read_runs(origin: str | None) -> list[dict[str, Any]]:
    """Return the metadata of a checkpoint and of those that it began with, newest first, while they are there."""
    runs: list[dict[str, Any]] = []
    seen: set[Path] = set()
    while origin not in _SCRATCH:
        path = Path(origin)
        if path.name in _WEIGHT_FILES:
            path = path.parent
        try:
            opened = open_checkpoint(path)
        except CheckpointError:  # timm's, a file, or moved since: the card tells what is left
            break
        if opened.folder in seen:  # a run that was resumed from itself
            break
        seen.add(opened.folder)
        runs.append(opened.metadata)
        origin = opened.metadata["config"]["model"]["init"]
    return runs


def describe_training(source: Source, runs: list[dict[str, Any]]) -> list[str]:
    """Return a sentence for each of ``runs``, newest first, and one about what came before them."""
    if not runs:
        what = f"a model of timm's, {source.checkpoint}" if source.kind == "timm" else "a file"
        return [f"The weights come from {what}, which says nothing of its training (SHA-256 {source.sha256})."]
    lines = [_describe_run(run) for run in runs]
    init = runs[-1]["config"]["model"]["init"]
    if init in _SCRATCH:
        lines.append("Before that, nothing: the first weights were random.")
    else:
        lines.append(f"Before that: {name_source(init)}.")
    return lines


def name_source(path: str) -> str:
    """Return the last name of a path, or the whole text if it has none."""
    return Path(path).name or path


def _describe_run(run: dict[str, Any]) -> str:
    """Return one run in a sentence."""
    optim = run["config"]["optim"]
    batch = optim["batch_size"]
    duration = f"{run['epoch']:.4g}"
    # a run of so many steps has no number of epochs to reach
    duration += " epochs" if optim.get("steps") else f" of {optim['epochs']} epochs"
    images = ""
    if run["epoch"]:
        images = f", about {round(run['step'] / run['epoch'] * batch):,} images each"
    return (
        f"{_describe_method(run)} on {name_source(run['config']['data']['source'])}: {duration}{images} "
        f"({run['step']:,} steps of {batch} images), seed {run['seed']}."
    )


def _describe_method(run: dict[str, Any]) -> str:
    """Return the beginning of the sentence: what was trained, and how."""
    config = run["config"]
    kind = run["kind"]
    if kind == "pretrain":
        return (
            f"Pretrained without labels by {config['objective']}, masking {config['masking']} "
            f"({config['mask']['ratio']:.0%} of the patches hidden)"
        )
    classes = len(run["classes"])
    if kind == "segmenter":
        return f"Trained with UperNet's head to tell {classes} classes of pixels"
    if kind == "embedder":
        return f"Trained by ArcFace to tell {classes:,} classes by one descriptor an image"
    if kind == "detector":
        network = "Mask R-CNN" if config["masks"] else "Faster R-CNN"
        return f"Trained as {network} to find {classes} classes of objects"
    if config.get("frozen"):
        return f"A linear classifier of {classes} classes trained on the frozen encoder"
    return f"Fine-tuned to {classes} classes"
