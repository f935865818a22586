"""The history of a checkpoint, back to the first weights, for model cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ehm.errors import CheckpointError
from ehm.storage.checkpoint import open_checkpoint

__all__ = [
    "UNSTATED",
    "describe_runs",
    "find_base_model",
    "find_data_license",
    "list_datasets",
    "list_maskings",
    "name_source",
    "read_runs",
]

UNSTATED = "not stated"
_ELPV = (
    "[CC BY-NC-SA 4.0](https://creativecommons.org/licenses/by-nc-sa/4.0/), for non-commercial use, of elpv-dataset "
    "(Buerhop-Lutz et al. 2018, Deitsch et al. 2019 and 2021)"
)
"""The licence of ELPV's photographs, which ehm trains on by default."""
_WEIGHTS = ("encoder.safetensors", "model.safetensors", "encoder", "encoder_hf")
"""Files and folders inside a run or a checkpoint; ``model.init`` may name them instead of the run itself."""
_SCRATCH = (None, "scratch")


def read_runs(origin: str | None) -> list[dict[str, Any]]:
    """Return the metadata of a checkpoint, of the one that it began with, and so on, newest first.

    The list ends at random weights, or at weights that are not a checkpoint (any more).
    """
    runs: list[dict[str, Any]] = []
    seen: set[Path] = set()
    while origin not in _SCRATCH:
        path = Path(origin)
        while path.name in _WEIGHTS:
            path = path.parent
        try:
            opened = open_checkpoint(path)
        except CheckpointError:  # a name of timm's, a file of weights, or a run that was moved or removed
            break
        if opened.folder in seen:  # a cycle: model.init names a run that was trained from this one
            break
        seen.add(opened.folder)
        runs.append(opened.metadata)
        origin = _find_init(opened.metadata)
    return runs


def describe_runs(runs: list[dict[str, Any]]) -> list[str]:
    """Return a sentence for each of ``runs``, newest first, and a last one about the weights before them.

    There must be at least one run.
    """
    lines = [_describe_run(run) for run in runs]
    init = _find_init(runs[-1])
    if init in _SCRATCH:
        lines.append("Before that, nothing: the first weights were random.")
    else:
        lines.append(f"Before that: {name_source(init)}.")
    return lines


def find_base_model(runs: list[dict[str, Any]]) -> str | None:
    """Return the name on the Hugging Face Hub of the published model that the oldest run began with, or None."""
    if not runs:
        return None
    init = _find_init(runs[-1]) or ""
    kind, _, name = init.partition(":")
    if kind == "hf":
        return str(name)
    if kind == "timm":
        name, _, option = name.partition("?")
        # only timm's names with a tag, after a dot, are weights with a repository on the Hub
        if "." in name and option != "pretrained=false":
            return f"timm/{name}"
    return None


def find_data_license(runs: list[dict[str, Any]]) -> str:
    """Return the licence of the images of ``runs``: known for ELPV's photographs, "not stated" for all others."""
    elpv = []
    for run in runs:
        data = run["config"]["data"]
        elpv.append("elpv" in (data["source"], data.get("layout")))
    if not any(elpv):
        return UNSTATED
    return _ELPV if all(elpv) else f"{_ELPV}; of the others {UNSTATED}"


def list_datasets(runs: list[dict[str, Any]]) -> list[str]:
    """List the names of the sources that ``runs`` were trained on, without their folders and without repetitions."""
    sources = []
    for run in runs:
        source = name_source(run["config"]["data"]["source"])
        if source not in sources:
            sources.append(source)
    return sources


def list_maskings(runs: list[dict[str, Any]]) -> list[str]:
    """List the maskings that ``runs`` were pretrained with, in the order of their names."""
    return sorted({run["config"]["masking"] for run in runs if run["kind"] == "pretrain"})


def name_source(path: str) -> str:
    """Return the last part of a path, or the text itself if it has none."""
    return Path(path).name or path


def _find_init(run: dict[str, Any]) -> str | None:
    """Return the ``model.init`` of a run; None for one of ehm 0.1.0, whose pretraining always began at random."""
    init: str | None = run["config"]["model"].get("init")
    return init


def _describe_run(run: dict[str, Any]) -> str:
    """Describe one run in a sentence."""
    optim = run["config"]["optim"]
    batch = optim["batch_size"]
    duration = f"{run['epoch']:.4g}"
    # with optim.steps, optim.epochs is not the length of the run
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
    if kind == "answerer":
        frozen = "The resampler of a frozen encoder" if config["frozen"] else "Tuned together with a resampler"
        return f"{frozen}, trained as the eyes of the language model {name_source(run['language']['source'])}"
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
