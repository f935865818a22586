"""Cards of notebooks: valid HTML that loads and runs nothing and escapes every name, and calls that do as commands."""

import inspect
import re
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from run_folders import (
    SVG,
    find_by_class,
    finetune_config,
    parse_page,
    pretrain_config,
    read_table,
    read_text,
    write_run,
)

import ehm
from ehm.analysis.data_stats.result import DataStatistics
from ehm.analysis.picture_files import PictureFiles
from ehm.cli import build_parser
from ehm.comparison.command import Comparison
from ehm.comparison.statistics import Interval
from ehm.comparison.table import ComparisonTable, Difference, Row
from ehm.config import TokenizerConfig
from ehm.config.pixel_format import RGB_BYTES
from ehm.deploy.bench import Timing, TimingList
from ehm.deploy.predict.prediction import Prediction
from ehm.deploy.predict.prediction_list import PredictionList
from ehm.report.mistakes import Mistake, save_mistakes
from ehm.report.next_steps import list_next_steps
from ehm.report.python_calls import convert_to_python
from ehm.report.record import read_record
from ehm.tasks.classification.metrics import report_classification
from ehm.training.pretrain import TrainResult
from ehm.training.supervised import TaskResult
from ehm.verification.check import Result
from ehm.verification.report import Verification
from ehm.verification.status import VerificationStatus

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(2)>{{ 7 * 7 }}&amp;'
LINES = [{"step": 10 * n, "epoch": float(n), "loss": 1 / n, "knn": 0.2 * n, "tree_height": 9.0} for n in range(1, 5)]
STATE = {"kind": "pretrain", "step": 40, "epoch": 4.0, "versions": {"ehm": "0.1.0"}, "device": "cpu"}


def parse_card(shown):
    """Return the tree of a card as a browser reads it in a page; fails if it loads or runs anything."""
    html = shown._repr_html_()
    tree = parse_page(f"<!doctype html><html lang=en><head><title>x</title></head><body>{html}</body></html>")
    for element in tree.iter():
        tag = str(element.tag).rpartition("}")[2]
        assert tag not in {"script", "link", "iframe", "object", "base", "form"}
        for name, value in element.attrib.items():
            assert not name.startswith("on")
            if name in {"src", "href", "srcset", "data", "action", "poster"}:
                assert value.startswith("data:image/"), (tag, value)
    assert not re.search(r"@import|url\(|https?://", html)
    return tree


@pytest.fixture
def pretrained(tmp_path):
    """The result of a pretraining run in a folder of a hostile name, with a picture."""
    folder = write_run(
        tmp_path / HOSTILE.replace("/", "_"), pretrain_config(data={"source": HOSTILE}), LINES, state=STATE
    )
    (folder / "pictures").mkdir()
    Image.new("RGB", (40, 30), "red").save(folder / "pictures" / "reconstruction-00000040.png")
    return TrainResult(folder, folder / "checkpoints" / "step-00000040", None, 40, 0.25)


def test_the_card_of_a_run_shows_its_figures_curves_picture_folder_and_next_steps(pretrained):
    tree = parse_card(pretrained)
    text = read_text(tree)
    assert "Complete: 40 steps" in text
    assert str(pretrained.out) in text
    assert [read_text(heading) for heading in find_by_class(tree, "ehm-heading")] == [
        "Nearest neighbours (k-NN)",
        "Loss",
        "Height of the trees",
    ]
    assert len(list(tree.iter(f"{SVG}svg"))) == 3
    assert len([element for element in tree.iter() if element.get("src")]) == 1
    assert "Reconstruction after step 40" in text
    assert "ehm.finetune(" in text


def test_a_result_whose_folder_is_gone_shows_itself_as_text(tmp_path):
    assert TrainResult(tmp_path / "gone", tmp_path, None, 1, 0.5)._repr_html_() is None


def test_the_card_of_a_classifier_shows_its_worst_mistakes(tmp_path):
    labels = np.arange(40) % 2
    report = report_classification(labels, np.eye(2)[1 - labels], (HOSTILE, "b"))
    metrics = {"part": "fold 1 of 5", **report.to_json()}
    lines = [{**line, "top1": 0.5, "balanced_accuracy": 0.5} for line in LINES]
    state = {**STATE, "kind": "classifier", "classes": [HOSTILE, "b"]}
    folder = write_run(tmp_path / "run", finetune_config(), lines, metrics, state)
    mistake = Mistake(f"{HOSTILE}.png", HOSTILE, "b", 0.93)
    save_mistakes(folder, [(mistake, Image.new("RGB", (300, 300), "blue"))])
    tree = parse_card(TaskResult(folder, folder, folder, report))
    assert [read_text(each) for each in find_by_class(tree, "ehm-name")] == [f"is {HOSTILE}"]
    assert "sure 93.0%" in read_text(tree)
    [headings, first, second] = read_table(next(element for element in tree.iter() if element.tag.endswith("}table")))
    assert headings[0] == "class"
    assert [first[0], first[-1], second[0], second[-1]] == [HOSTILE, "20", "b", "20"]
    assert "0.0%" in [read_text(value) for value in find_by_class(tree, "ehm-value")]
    assert "0.0%" in read_text(parse_card(report))


def test_a_comparison_shows_its_table_and_what_it_says(tmp_path):
    table = ComparisonTable(
        "encoder",
        "top1",
        {"knn": "k-NN"},
        [],
        [Row(HOSTILE, {"knn": Interval(0.75, 0.01, 9)}, {}), Row("scratch", {"knn": Interval(0.5, 0.01, 9)}, {})],
        [Difference(HOSTILE, "scratch", {"knn": Interval(0.25, 0.02, 9)})],
        "over images",
    )
    tree = parse_card(Comparison(tmp_path, table))
    rows = read_table(next(element for element in tree.iter() if str(element.tag).endswith("}table")))
    assert rows == [["encoder", "k-NN"], [HOSTILE, "0.750 ± 0.010"], ["scratch", "0.500 ± 0.010"]]
    assert f"k-NN: {HOSTILE} is better than scratch" in read_text(tree)
    bars = [bar[0].get("style") for bar in find_by_class(tree, "ehm-bar")]
    assert bars == ["width: 75.0%", "width: 50.0%"]


def test_lists_stay_lists_and_show_what_is_in_them(tmp_path):
    file = tmp_path / "a <b>.png"
    Image.new("RGB", (900, 600), "green").save(file)
    predictions = PredictionList([Prediction(str(file), ((HOSTILE, 0.75),)), Prediction("b.png", error=HOSTILE)])
    tree = parse_card(predictions)
    assert [image.get("width") for image in tree.iter() if image.get("src")] == ["240"]
    assert f"0.7500 {HOSTILE}" in read_text(tree)
    assert f"b.png: {HOSTILE}" in read_text(tree)
    assert predictions == list(predictions)

    pictures = PictureFiles([file, tmp_path / "table.csv"])
    assert isinstance(pictures, list)
    assert len([image for image in parse_card(pictures).iter() if image.get("src")]) == 1

    timings = TimingList([Timing(HOSTILE, 8, 2.0, 3.0, 4000.0, 1.0, 0.9, 1.1, 1.0)])
    assert HOSTILE in read_text(parse_card(timings))


def test_a_verification_is_its_exit_status():
    results = [Result("steps", HOSTILE, "pass", 0.5, 1.0), Result("steps", "b", "fail", 2.0, 1.0)]
    found = Verification("2026-01-01", "ehm verify", 1.0, {"device": HOSTILE}, results, [], [])
    status = VerificationStatus(found, Path("runs/verify"))
    assert status == 1
    assert VerificationStatus(replace(found, results=results[:1]), Path("runs/verify")) == 0
    assert "FAILED: 1 within bounds, 1 failed, 0 skipped" in read_text(parse_card(status))


def test_figures_of_a_source_show_thumbnails(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "thumbnails.png")
    three = (0.5, 0.5, 0.5)
    sizes = ((300, 200), (300, 200))
    found = DataStatistics(
        HOSTILE, 2, RGB_BYTES, three, three, three, three, {}, sizes, (("a", "b"),), {}, out=tmp_path
    )
    tree = parse_card(found)
    assert "300 x 200" in read_text(tree)
    assert len([image for image in tree.iter() if image.get("src")]) == 1


def flatten(value):
    """Return all texts and flags in nested lists, sorted."""
    if isinstance(value, list | tuple):
        return sorted(text for each in value for text in flatten(each))
    return [str(value)]


def call(python):
    """Run calls with functions that only bind their arguments; return name and arguments of each."""
    called = []

    def stand_in(name):
        signature = inspect.signature(getattr(ehm, name))
        return lambda *values, **named: called.append((name, signature.bind(*values, **named).arguments))

    exec(python, {"ehm": SimpleNamespace(**{name: stand_in(name) for name in ehm.__all__ if name != "__version__"})})
    return called


@pytest.mark.parametrize("kind", ["pretrain", "tokenizer", "classifier", "stopped"])
def test_calls_do_what_the_commands_of_next_steps_do(kind, tmp_path):
    configs = {"tokenizer": TokenizerConfig(), "classifier": finetune_config()}
    config = configs.get(kind, pretrain_config(run={"max_steps": 20} if kind == "stopped" else {}))
    state = {**STATE, "step": 20 if kind == "stopped" else 40}
    run = write_run(tmp_path / "a run", config, [] if kind == "stopped" else LINES, state=state)
    names = []
    for step in list_next_steps(read_record(run)):
        command = step.command.replace("\\\n", " ")
        calls = call(convert_to_python(command))
        for line, (name, arguments) in zip(command.splitlines(), calls, strict=True):
            options = vars(build_parser().parse_args(shlex.split(line)[1:]))
            # the name of the function tells these
            for key in ("command", "debug", "action"):
                options.pop(key, None)
            assert flatten(list(arguments.values())) == flatten(list(options.values())), line
            names.append(name)
    assert names[-1] == "write_report"
    assert len(names) >= 3


def test_words_with_quotes_and_spaces_are_kept():
    python = convert_to_python("""ehm compare 'it'"'"'s "a" run' scratch --source "/data/two words" --finetune""")
    [(name, arguments)] = call(python)
    assert name == "compare"
    assert arguments == {"encoders": ['it\'s "a" run', "scratch"], "source": "/data/two words", "finetune": True}


def test_a_path_of_a_bundle_is_a_path(tmp_path):
    from ehm.deploy.export.bundle_path import BundlePath

    path = BundlePath(tmp_path)
    assert path == tmp_path
    assert isinstance(path, Path)
    assert str(path / "model.onnx") == str(tmp_path / "model.onnx")
    assert path._repr_html_() is None
    (tmp_path / "manifest.json").write_text("{}")
    assert path._repr_html_() is None
