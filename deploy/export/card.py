"""The model card of a bundle: a README.md with the front matter that the Hugging Face Hub reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ehm.config import ExportConfig
from ehm.deploy.bundle.manifest import Ascend, Manifest, ModelRecord, Source
from ehm.deploy.predict.handler import Handler
from ehm.deploy.predict.registry import create_handler
from ehm.storage.writing import write_text
from ehm.training.history import (
    UNSTATED,
    describe_runs,
    find_data_license,
    list_datasets,
    list_maskings,
    name_source,
    read_runs,
)

__all__ = ["write_card"]

_CHOSEN_BY = ("mean_ap", "balanced_accuracy")
"""The figures that the best checkpoint of a classifier is chosen by."""
_FEW = 20
"""Classes that are named one by one."""


def write_card(manifest: Manifest, config: ExportConfig, path: Path) -> None:
    """Write the card of ``manifest`` at ``path``, with what its checkpoint and those before it say of training.

    A licence that ``config`` leaves out is called ``not stated``, except for that of elpv-dataset. Folders of images
    are given by their last name only: the rest tells about the machine.
    """
    runs = read_runs(manifest.source.checkpoint)
    handler = create_handler(manifest)
    training = []
    for line in _describe_training(manifest.source, runs):
        training.append(f"- {line}")
    licences = f"- model: {config.license or UNSTATED}\n- data: {config.data_license or find_data_license(runs)}"
    sections = {
        f"# {handler.card.title}": _describe_network(manifest),
        "## Training": "\n".join(training),
        "## Metrics": _describe_metrics(manifest, runs),
        "## Input and outputs": _describe_tensors(handler),
        "## Use": _describe_use(handler),
        "## Parity and number types": _describe_precisions(handler),
        "## Licence": licences,
    }
    front = yaml.safe_dump(_make_front_matter(handler, config, runs), sort_keys=False, allow_unicode=True)
    text = f"---\n{front}---\n"
    for title, content in sections.items():
        text += f"\n{title}\n\n{content}\n"
    write_text(path, text)


def _make_front_matter(handler: Handler, config: ExportConfig, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the keys that the Hub reads."""
    sources = list_datasets(runs)
    front: dict[str, Any] = {
        "license": config.license or "unknown",
        "library_name": "ehm",
        "pipeline_tag": handler.card.hub_tag,
        "tags": ["onnx", "vision", *list_maskings(runs)],
    }
    if sources:
        front["datasets"] = sources
    if handler.card.hub_metric:
        front["metrics"] = [handler.card.hub_metric]
    return front


def _describe_network(manifest: Manifest) -> str:
    outputs = ", ".join(f"`{name}`" for name in manifest.output_names)
    text = f"An ONNX network that gives {outputs} of an image. Exported by ehm {manifest.versions['ehm']}."
    if not manifest.labels:
        return text
    names = ", ".join(manifest.labels[:_FEW])
    if len(manifest.labels) > _FEW:
        names += ", ..."
    if manifest.thresholds:
        return (
            f"{text}\n\nIts {len(manifest.labels)} labels, of which an image may have several: {names}. A label is "
            "present if 1 / (1 + exp(-logit)) reaches the label's threshold in `manifest.json`."
        )
    return f"{text}\n\nIts {len(manifest.labels)} classes: {names}."


def _describe_training(source: Source, runs: list[dict[str, Any]]) -> list[str]:
    """Return a sentence for each of ``runs``, newest first, and one about what came before them."""
    if runs:
        return describe_runs(runs)
    what = f"a model of timm's, {source.checkpoint}" if source.kind == "timm" else "a file"
    return [f"The weights come from {what}, which says nothing of its training (SHA-256 {source.sha256})."]


def _describe_metrics(manifest: Manifest, runs: list[dict[str, Any]]) -> str:
    metrics = (runs[0].get("metrics") if runs else None) or {}
    rows = []
    for name, value in metrics.items():
        if value is not None:
            rows.append(f"| {name.replace('_', ' ')} | {value:.4f} |")
    if not rows:
        return "The checkpoint records none."
    path = Path(manifest.source.checkpoint)
    text = f"Of the checkpoint {name_source(manifest.source.checkpoint)}, on all images that its run held out"
    if path.parent.name == "best":
        # a checkpoint that was chosen by a figure has a better one than on images of no choice
        figure = next((name for name in _CHOSEN_BY if name in metrics), next(iter(metrics)))
        text += f"; it was chosen for its {figure.replace('_', ' ')} on the same ones, which flatters it"
    return "\n".join([f"{text}:\n", "| | |", "|---|---|", *rows])


def _describe_tensors(handler: Handler) -> str:
    lines = ["| | type | layout | shape |", "|---|---|---|---|"]
    for tensor in (handler.manifest.input, *handler.manifest.outputs):
        shape = " x ".join(map(str, tensor.shape))
        lines.append(f"| `{tensor.name}` | {tensor.dtype} | {tensor.layout} | {shape} |")
    return "\n".join([*lines, "", handler.describe_input()])


def _describe_use(handler: Handler) -> str:
    python = handler.write_example_code()
    if not python:
        return "\n".join(["```sh", "ehm predict BUNDLE photo.png", "```"])
    shell = ["ehm predict BUNDLE photo.png", "ehm serve BUNDLE"]
    return "\n".join(["```sh", *shell, "```", "", "Or, in this folder:", "", "```python", *python, "```"])


def _describe_precisions(handler: Handler) -> str:
    manifest = handler.manifest
    parity = manifest.parity
    difference = f"{parity.max_abs:.1e}"
    if parity.max_relative is not None:
        difference += f", {parity.max_relative:.1e} of an output's size"
    lines = [
        f"float32 differs from {parity.reference} by at most {difference} (allowed {parity.tolerance:g}), "
        f"with {parity.runtime}; the smallest cosine is {parity.cosine:.7f}. The graph is written for "
        f"`{manifest.target}`, operator set {manifest.models['float32'].opset}."
    ]
    for precision, model in manifest.models.items():
        if model.quality is not None:
            lines.append(f"{precision} {_describe_quality(model, handler)}.")
    if manifest.ascend is not None and manifest.ascend.trials:
        lines.append(_describe_trials(manifest.ascend))
    return "\n\n".join(lines)


def _describe_trials(record: Ascend) -> str:
    """Return a table of the precisions that were tried on an NPU."""
    lines = [
        f"`model.om` is for {record.soc_version}, in `{record.precision}`: the fastest with cosines of "
        f"{record.cosine:g} and {record.agreement:.1%} of the same answers at least, beside float32 on "
        f"{record.trials[0].images} images of {name_source(record.trials[0].source)}.\n",
        "| precision | ms a batch | least cosine | the same | near enough |",
        "|---|---|---|---|---|",
    ]
    for trial in record.trials:
        agreement = "" if trial.agreement is None else f"{trial.agreement:.1%}"
        near = "yes" if trial.accepted else "no"
        lines.append(f"| {trial.precision} | {trial.milliseconds:.2f} | {trial.cosine:.6f} | {agreement} | {near} |")
    return "\n".join(lines)


def _describe_quality(model: ModelRecord, handler: Handler) -> str:
    quality = model.quality
    assert quality is not None
    text = (
        f"(`{model.file}`), beside float32 on {quality.images} images of {name_source(quality.source)}: "
        f"mean cosine of the {handler.compared} {quality.cosine:.5f}, least {quality.cosine_min:.5f}"
    )
    if handler.compared == "logits":
        text += " (little is meant by it where logits are near 0)"
    if quality.agreement is not None:
        text += f"; {handler.agreement.format(quality.agreement)}"
    if quality.accuracy is not None and quality.accuracy_float32 is not None:
        text += f"; accuracy on these {quality.accuracy:.1%}, of float32 {quality.accuracy_float32:.1%}"
    if quality.default_cosine is not None:
        text += f"; mean cosine in a session of ONNX Runtime with its default settings {quality.default_cosine:.5f}"
    return text
