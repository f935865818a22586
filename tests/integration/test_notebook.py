"""The notebook of the quickstart: it runs from start to end, shows what it says, and lies without outputs."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import html5lib
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image
from tiny import TINY

import ehm
from ehm.config import FinetuneConfig, MeasureConfig, TrainConfig, load_config

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks/quickstart.ipynb"
SETTINGS = """
from pathlib import Path
SOURCE = str(Path("cells").absolute())
PHOTOGRAPHS = sorted(Path("cells").rglob("*.png"))[::20]
PRETRAINING = {pretraining}
FINETUNING = ["model.image_size=32", "optim.epochs=1", "optim.batch_size=8", "data.workers=0", "run.trackers=[]"]
COMPARISON = ["images=32", "repeats=1", "folds=2", "neighbours=5", "scratch_seeds=1", "workers=0"]
"""
CHANGES = {
    "optim.batch_size": 8,
    "optim.epochs": 1,
    "optim.warmup_epochs": 0,
    "data.workers": 0,
    "run.trackers": "[]",
    "run.log_every": 1,
    "watch.every": 1,
    "watch.pictures": 1,
}


def read_notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def find_cell(notebook, tag):
    """Return the place of the cell that has a tag."""
    [place] = [place for place, cell in enumerate(notebook.cells) if tag in cell.metadata.get("tags", ())]
    return place


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook after a run on forty small images with a tiny network, and the folder that it ran in."""
    folder = tmp_path_factory.mktemp("notebook")
    rng = np.random.default_rng(0)
    for name, low in (("bright", 128), ("dark", 0)):
        (folder / "cells" / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(low, low + 128, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "cells" / name / f"{number:02d}.png")
    notebook = read_notebook()
    settings = SETTINGS.format(pretraining=[f"{key}={value}" for key, value in {**TINY, **CHANGES}.items()])
    notebook.cells.insert(find_cell(notebook, "parameters") + 1, nbformat.v4.new_code_cell(settings))
    client = NotebookClient(notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    return client.execute(), folder


def outputs_of(notebook, call):
    """Return the outputs of the cell that makes a call."""
    [cell] = [cell for cell in notebook.cells if cell.cell_type == "code" and call in cell.source]
    return cell.outputs


def read_html(outputs):
    """Return the HTML of outputs, as a tree each."""
    pages = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    return [html5lib.parse(page, treebuilder="etree", namespaceHTMLElements=False) for page in pages]


def test_it_lies_in_the_repository_without_outputs():
    notebook = read_notebook()
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


def test_it_calls_functions_that_are_public_and_links_to_pages_that_exist():
    notebook = read_notebook()
    called = set()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ehm":
                    called.add(node.attr)
        else:
            for link in re.findall(r"\]\((\.\./[^)#]+)", cell.source):
                assert (NOTEBOOK.parent / link).is_file(), link
    assert called <= set(ehm.__all__)
    assert called >= {"measure_data", "train", "inspect", "finetune", "export", "predict", "compare"}


def test_its_own_settings_are_settings():
    values = {}
    exec(read_notebook().cells[find_cell(read_notebook(), "parameters")].source, {"Path": Path}, values)
    assert load_config(TrainConfig, "elpv/pretrain", values["PRETRAINING"]).optim.epochs > 1
    assert load_config(FinetuneConfig, "elpv/finetune", values["FINETUNING"]).optim.epochs > 1
    assert load_config(MeasureConfig, None, values["COMPARISON"]).images
    assert all(photograph.is_file() for photograph in values["PHOTOGRAPHS"])


def test_every_cell_runs_and_the_results_are_shown(executed):
    notebook, folder = executed
    cards = {
        "ehm.measure_data(": "Images",
        "ehm.train(": "Pretraining",
        'ehm.inspect("hierarchy"': "Pictures",
        'ehm.inspect("masks"': "Pictures",
        "ehm.finetune(": "Classifier",
        "ehm.export(": "Bundle",
        "ehm.predict(": "Predictions",
        "ehm.compare(": "Comparison",
    }
    for call, kind in cards.items():
        tree = read_html(outputs_of(notebook, call))[-1]
        text = " ".join(tree.itertext())
        assert kind in text, call
    for call in ("ehm.measure_data(", "ehm.train(", 'ehm.inspect("hierarchy"', 'ehm.inspect("masks"', "ehm.predict("):
        assert list(read_html(outputs_of(notebook, call))[-1].iter("img")), call
    assert (folder / "runs/quickstart/bundle/model.onnx").is_file()


def test_its_bars_came_to_their_ends(executed):
    notebook, _ = executed
    for call in ("ehm.train(", "ehm.finetune("):
        [bar, _card] = read_html(outputs_of(notebook, call))
        [progress] = bar.iter("progress")
        assert progress.get("value") == progress.get("max"), call
        printed = "".join(output.text for output in outputs_of(notebook, call) if output.output_type == "stream")
        assert "ETA" not in printed


def test_nothing_that_it_shows_is_loaded_from_elsewhere_or_runs(executed):
    notebook, _ = executed
    shown = 0
    for cell in notebook.cells:
        for tree in read_html(cell.get("outputs", ())):
            shown += 1
            for element in tree.iter():
                assert element.tag not in {"script", "link", "iframe", "object"}
                assert element.get("src", "data:image/").startswith("data:image/")
                assert element.get("href") is None
    assert shown >= 10


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Run the first cell with its ``EHM`` and what can be imported; return the command that it starts, if any."""
    source = read_notebook().cells[find_cell(read_notebook(), "install")].source
    assert "\nEHM = None " in source

    def run(origin, missing, folder=tmp_path):
        started = []
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find_spec(name))
        monkeypatch.setattr(subprocess, "run", lambda command, check: started.append(command))
        monkeypatch.chdir(folder)
        exec(source.replace("\nEHM = None ", f"\nEHM = {origin!r} "), {})
        return started

    return run


EXTRAS = "torch,export,tasks,elpv"


def test_the_first_cell_installs_nothing_if_everything_is_there(install):
    assert install(None, set()) == []


@pytest.mark.parametrize(
    ("origin", "wanted"),
    [
        ("/content/ehm-0.1.0-py3-none-any.whl", f"/content/ehm-0.1.0-py3-none-any.whl[{EXTRAS}]"),
        ("git+https://git.example/ehm", f"ehm[{EXTRAS}] @ git+https://git.example/ehm"),
    ],
)
def test_the_first_cell_installs_what_it_was_told(install, origin, wanted):
    assert install(origin, {"ehm"}) == [[sys.executable, "-m", "pip", "install", wanted]]


def test_the_first_cell_installs_the_clone_that_it_lies_in(install):
    assert install(None, {"ehm"}, NOTEBOOK.parent) == [[sys.executable, "-m", "pip", "install", f"{ROOT}[{EXTRAS}]"]]


def test_the_first_cell_promises_no_package_index(install):
    with pytest.raises(FileNotFoundError, match="set EHM to a wheel file or a repository"):
        install(None, {"ehm"})


def test_the_first_cell_adds_what_is_missing_as_ehm_was_installed(install):
    [command] = install(None, {"timm"})
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert command[-1].endswith(f"[{EXTRAS}]")
