"""The training behind a checkpoint, back to the first weights, as model cards tell it."""

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
"""The licence of the photographs that ehm takes if no others are named."""
_WEIGHTS = ("encoder.safetensors", "model.safetensors", "encoder", "encoder_hf")
"""Files and folders in that of a run or of a checkpoint, which name it as well."""
_SCRATCH = (None, "scratch")


def read_runs(origin: str | None) -> list[dict[str, Any]]:
    """Return the metadata of a checkpoint and of those that it began with, newest first, while they are there."""
    runs: list[dict[str, Any]] = []
    seen: set[Path] = set()
    while origin not in _SCRATCH:
        path = Path(origin)
        while path.name in _WEIGHTS:
            path = path.parent
        try:
            opened = open_checkpoint(path)
        except CheckpointError:  # timm's, a file, or moved since: the card tells what is left
            break
        if opened.folder in seen:  # a run that was resumed from itself
            break
        seen.add(opened.folder)
        runs.append(opened.metadata)
        origin = _find_init(opened.metadata)
    return runs


def describe_runs(runs: list[dict[str, Any]]) -> list[str]:
    """Return a sentence for each of ``runs``, newest first and at least one, and one about what came before them."""
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
        # timm's weights have a tag, and a repository each
        if "." in name and option != "pretrained=false":
            return f"timm/{name}"
    return None


def find_data_license(runs: list[dict[str, Any]]) -> str:
    """Return the licence of ELPV's photographs, which is known, even if they are not the only ones; else none."""
    elpv = []
    for run in runs:
        data = run["config"]["data"]
        elpv.append("elpv" in (data["source"], data.get("layout")))
    if not any(elpv):
        return UNSTATED
    return _ELPV if all(elpv) else f"{_ELPV}; of the others {UNSTATED}"


def list_datasets(runs: list[dict[str, Any]]) -> list[str]:
    """List the last names of the images that ``runs`` were trained on, without repetitions."""
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
    """Return the last name of a path, or the whole text if it has none."""
    return Path(path).name or path


def _find_init(run: dict[str, Any]) -> str | None:
    """Return the ``model.init`` of a run; None for one of ehm 0.1.0, whose pretraining always began at random."""
    init: str | None = run["config"]["model"].get("init")
    return init


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
