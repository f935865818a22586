"""Folders of runs as commands leave them, made without training, and reports read as a browser reads them."""

import json
from pathlib import Path

import html5lib
import yaml

from ehm.config import FinetuneConfig, TrainConfig

HTML = "{http://www.w3.org/1999/xhtml}"
SVG = "{http://www.w3.org/2000/svg}"


def write_run(folder: Path, config, lines=(), metrics=None, state=None) -> Path:
    """Write a run's folder of a configuration, lines of metrics, figures, and metadata of its newest checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics))
    if state is not None:
        checkpoint = folder / "checkpoints" / f"step-{state['step']:08d}"
        checkpoint.mkdir(parents=True)
        values = {"format": 1, "sha256": {}, "config": config.model_dump(mode="json"), **state}
        (checkpoint / "state.json").write_text(json.dumps(values))
    return folder


def pretrain_config(**values) -> TrainConfig:
    """Return the configuration of a small pretraining run of four epochs."""
    optim = {"epochs": 4, "batch_size": 32, "warmup_epochs": 1}
    given = {"encoder": "vit_tiny", "image_size": 96, "patch_size": 12, "data": {"source": "photographs"}}
    return TrainConfig.model_validate({**given, "optim": optim, **values})


def finetune_config(**values) -> FinetuneConfig:
    """Return the configuration of a classifier that is trained for four epochs."""
    optim = {"epochs": 4, "batch_size": 32, "warmup_epochs": 1}
    given = {"model": {"init": "runs/pretrain"}, "data": {"source": "labelled"}}
    return FinetuneConfig.model_validate({**given, "optim": optim, **values})


def parse_page(text: str):
    """Return the tree of an HTML document; anything that is no valid HTML 5 raises ParseError."""
    return html5lib.HTMLParser(strict=True).parse(text)


def read_text(element) -> str:
    """Return the text of an element on one line."""
    return " ".join("".join(element.itertext()).split())


def find_by_class(tree, name: str):
    """Return the elements that have a class."""
    return [element for element in tree.iter() if name in element.get("class", "").split()]


def read_table(table) -> list[list[str]]:
    """Return the rows of a table as texts."""
    return [[read_text(cell) for cell in row] for row in table.iter(f"{HTML}tr")]
