"""The model card of a bundle: a README.md with the front matter that the Hugging Face Hub reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ehm.config import ExportConfig
from ehm.deploy.bundle.manifest import Manifest
from ehm.deploy.predict.handler import Handler
from ehm.deploy.predict.registry import create_handler
from ehm.errors import CheckpointError
from ehm.storage.checkpoint import open_checkpoint
from ehm.storage.writing import write_text

__all__ = ["write_card"]

_UNSTATED = "not stated"
_ELPV = (
    "[CC BY-NC-SA 4.0](https://creativecommons.org/licenses/by-nc-sa/4.0/), for non-commercial use, of elpv-dataset "
    "(Buerhop-Lutz et al. 2018, Deitsch et al. 2019 and 2021)"
)
"""The licence of the photographs that ehm takes where no others are named."""
_FEW = 20
"""Classes that are named one by one."""
_OF_A_RUN = ("encoder.safetensors", "model.safetensors")
"""Files in the folder of a run or of a checkpoint."""


def write_card(manifest: Manifest, config: ExportConfig, path: Path) -> None:
    """Write the card of ``manifest`` at ``path``: what its checkpoint, and those that it began with, say of training.

    A licence that ``config`` leaves out is called ``not stated``, but for that of elpv-dataset. Of the places where
    images lay only their last name is given.
    """
    runs = _runs(manifest.source.checkpoint)
    data = list(dict.fromkeys(_name(run["config"]["data"]["source"]) for run in runs))
    handler = create_handler(manifest)
    words = handler.card
    front = {
        "license": config.license or "unknown",
        "library_name": "ehm",
        "pipeline_tag": words.hub_tag,
        "tags": ["onnx", "vision", *sorted({run["config"]["masking"] for run in runs if run["kind"] == "pretrain"})],
        **({"datasets": data} if data else {}),
        **({"metrics": [words.hub_metric]} if words.hub_metric else {}),
    }
    sections = {
        f"# {words.title}": _about(manifest),
        "## Training": "\n".join(f"- {line}" for line in _training(manifest, runs)),
        "## Metrics": _metrics(manifest, runs),
        "## Input and outputs": _tensors(handler),
        "## Use": _use(handler),
        "## Parity and number types": _numbers(manifest),
        "## Licence": f"- model: {config.license or _UNSTATED}\n- data: {config.data_license or _data_license(runs)}",
    }
    text = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    body = "\n\n".join(f"{title}\n\n{content}" for title, content in sections.items())
    write_text(path, f"---\n{text}---\n\n{body}\n")


def _runs(origin: str | None) -> list[dict[str, Any]]:
    """What ``state.json`` says of a checkpoint and of those that it began with, newest first, while they are there."""
    runs: list[dict[str, Any]] = []
    seen: set[Path] = set()
    while origin not in (None, "scratch"):
        path = Path(origin)
        try:
            opened = open_checkpoint(path.parent if path.name in _OF_A_RUN else path)
        except CheckpointError:  # timm's, a file, or moved since: the card tells what is left
            break
        if opened.folder in seen:
            break
        seen.add(opened.folder)
        runs.append(opened.metadata)
        origin = opened.metadata["config"]["model"]["init"]
    return runs


def _name(source: str) -> str:
    return Path(source).name or source


def _about(manifest: Manifest) -> str:
    gives = ", ".join(f"`{output.name}`" for output in manifest.outputs)
    lines = [f"An ONNX network that gives {gives} of an image. Exported by ehm {manifest.versions['ehm']}."]
    if manifest.labels:
        named = ", ".join(manifest.labels[:_FEW]) + (", ..." if len(manifest.labels) > _FEW else "")
        lines.append(f"Its {len(manifest.labels)} classes: {named}.")
    return "\n\n".join(lines)


def _training(manifest: Manifest, runs: list[dict[str, Any]]) -> list[str]:
    if not runs:
        what = f"a model of timm's, {manifest.source.checkpoint}" if manifest.source.kind == "timm" else "a file"
        return [f"The weights come from {what}, which says nothing of its training (SHA-256 {manifest.source.sha256})."]
    lines = [_trained(run) for run in runs]
    init = runs[-1]["config"]["model"]["init"]
    scratch = init in (None, "scratch")
    lines.append("Before that, nothing: the first weights were random." if scratch else f"Before that: {_name(init)}.")
    return lines


def _trained(run: dict[str, Any]) -> str:
    """One run in a sentence."""
    config = run["config"]
    if run["kind"] == "pretrain":
        how = (
            f"Pretrained without labels by {config['objective']}, masking {config['masking']} "
            f"({config['mask']['ratio']:.0%} of the patches hidden)"
        )
    elif run["kind"] == "segmenter":
        how = f"Trained with UperNet's head to tell {len(run['classes'])} classes of pixels"
    elif run["kind"] == "embedder":
        how = f"Trained by ArcFace to tell {len(run['classes']):,} classes by one descriptor an image"
    elif run["kind"] == "detector":
        network = "Mask R-CNN" if config["masks"] else "Faster R-CNN"
        how = f"Trained as {network} to find {len(run['classes'])} classes of objects"
    elif config.get("frozen"):
        how = f"A linear classifier of {len(run['classes'])} classes trained on the frozen encoder"
    else:
        how = f"Fine-tuned to {len(run['classes'])} classes"
    optim = config["optim"]
    batch = optim["batch_size"]
    images = f", about {round(run['step'] / run['epoch'] * batch):,} images each" if run["epoch"] else ""
    gone = f"{run['epoch']:.4g}" + (" epochs" if optim.get("steps") else f" of {optim['epochs']} epochs")
    return (
        f"{how} on {_name(config['data']['source'])}: {gone}{images} "
        f"({run['step']:,} steps of {batch} images), seed {run['seed']}."
    )


def _metrics(manifest: Manifest, runs: list[dict[str, Any]]) -> str:
    found = (runs[0].get("metrics") if runs else None) or {}
    lines = [f"| {name.replace('_', ' ')} | {value:.4f} |" for name, value in found.items() if value is not None]
    if not lines:
        return "The checkpoint records none."
    which = f"Of the checkpoint {_name(manifest.source.checkpoint)}, on all images that its run held out"
    if Path(manifest.source.checkpoint).parent.name == "best":
        by = "balanced_accuracy" if runs[0]["kind"] == "classifier" else next(iter(found))
        which += f"; it was chosen for its {by.replace('_', ' ')} on the same ones, which flatters it"
    return "\n".join([f"{which}:\n", "| | |", "|---|---|", *lines])


def _data_license(runs: list[dict[str, Any]]) -> str:
    """What is known without being told: the licence of ELPV's photographs, which need not be the only ones."""
    elpv = ["elpv" in (run["config"]["data"]["source"], run["config"]["data"]["layout"]) for run in runs]
    if not any(elpv):
        return _UNSTATED
    return _ELPV if all(elpv) else f"{_ELPV}; of the others {_UNSTATED}"


def _tensors(handler: Handler) -> str:
    lines = ["| | type | layout | shape |", "|---|---|---|---|"]
    for tensor in (handler.manifest.input, *handler.manifest.outputs):
        shape = " x ".join(map(str, tensor.shape))
        lines.append(f"| `{tensor.name}` | {tensor.dtype} | {tensor.layout} | {shape} |")
    return "\n".join([*lines, "", handler.describe_input()])


def _use(handler: Handler) -> str:
    python = handler.example_code()
    if not python:
        return "\n".join(["```sh", "ehm predict BUNDLE photo.png", "```"])
    shell = ["ehm predict BUNDLE photo.png", "ehm serve BUNDLE"]
    return "\n".join(["```sh", *shell, "```", "", "Or, in this folder:", "", "```python", *python, "```"])


def _numbers(manifest: Manifest) -> str:
    parity = manifest.parity
    if parity.max_relative is None:
        difference = f"{parity.max_abs:.1e}"
    else:
        difference = f"{parity.max_abs:.1e}, {parity.max_relative:.1e} of an output's size"
    lines = [
        f"float32 differs from {parity.reference} by at most {difference} (allowed {parity.tolerance:g}), "
        f"with {parity.runtime}; the smallest cosine is {parity.cosine:.7f}. The graph is written for "
        f"`{manifest.target}`, operator set {manifest.models['float32'].opset}."
    ]
    for precision, model in manifest.models.items():
        if (quality := model.quality) is None:
            continue
        line = (
            f"{precision} (`{model.file}`), beside float32 on {quality.images} images of {_name(quality.source)}: "
            f"mean cosine of the {manifest.compared_output} {quality.cosine:.5f}, least {quality.cosine_min:.5f}"
        )
        if manifest.compared_output == "logits":
            line += " (little is meant by it where logits are near 0)"
        if quality.agreement is not None:
            line += f"; the same class for {quality.agreement:.1%}"
        if quality.accuracy is not None and quality.accuracy_float32 is not None:
            line += f"; accuracy on these {quality.accuracy:.1%}, of float32 {quality.accuracy_float32:.1%}"
        if quality.default_cosine is not None:
            line += f"; mean cosine in a session of ONNX Runtime with its default settings {quality.default_cosine:.5f}"
        lines.append(f"{line}.")
    return "\n\n".join(lines)
