"""Runs end with a report that says what they did, and never fail because of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from full_disk import full_disk
from run_folders import HTML, SVG, find_by_class, parse_page, read_table, read_text
from tiny import RUN, TINY

import ehm
from ehm.cli import main
from ehm.report import write
from ehm.report.record import read_record

WRITTEN = Path(__file__).parents[1] / "data" / "written_before" / "trained"
HOSTILE = ("<script>alert(1)<|script>", "down [red]&amp;")


def flags(values):
    """Settings as the command line takes them."""
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture
def labelled(stripes):
    """Stripes of two classes whose names are no plain words."""
    for old, new in zip(("across", "down"), HOSTILE, strict=True):
        (stripes / old).rename(stripes / new)
    return stripes


def read_page(run):
    """The tree of a run's report."""
    return parse_page((run / "report.html").read_text(encoding="utf-8"))


def find_chart(tree, title):
    """The chart with a title."""
    return next(each for each in find_by_class(tree, "chart") if next(each.iter(f"{HTML}h4")).text == title)


def count_points(tree, title):
    """The number of points of the first line of a chart."""
    return len(next(find_chart(tree, title).iter(f"{SVG}path")).get("data-readings").split("|"))


def test_pretraining_that_was_stopped_and_went_on_has_one_report(images, tmp_path, capsys):
    run = tmp_path / "run"
    settings = flags({**TINY, **RUN, "data.source": images})
    assert main(["train", *settings, "--set", "run.max_steps=4", "--device", "cpu", "--out", str(run)]) == 0
    assert f"Report: {run / 'report.html'}" in capsys.readouterr().out
    tree = read_page(run)
    assert read_text(find_by_class(tree, "pill")[0]) == "Stopped early by run.max_steps, after step 4 of 6"
    assert count_points(tree, "Loss") == 4

    again = ["train", "--resume", "--set", "run.max_steps=null", "--device", "cpu", "--out", str(run)]
    assert main(again) == 0
    tree = read_page(run)
    assert read_text(find_by_class(tree, "pill")[0]) == "Complete: 6 steps"
    assert count_points(tree, "Loss") == 6
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    (label,) = find_by_class(find_chart(tree, "Loss"), "label")
    assert float(label.text) == pytest.approx(losses[-1], rel=0.005)
    (facts,) = find_by_class(tree, "facts")
    assert f"{images}, 12 images" in read_text(facts)
    assert "vit_tiny, 48 wide, 2 blocks, 32 x 32 pixels in patches of 8" in read_text(facts)


def test_fine_tuning_shows_its_figures_and_its_mistakes(labelled, tmp_path):
    run = tmp_path / "run"
    values = {"model.init": "scratch", "model.encoder": "vit_tiny", "model.width": 32, "model.depth": 1}
    values |= {"model.heads": 2, "model.image_size": 32, "model.patch_size": 8, "data.source": labelled}
    values |= {"optim.epochs": 1, "optim.batch_size": 8, "optim.dtype": "float32", "data.workers": 0}
    assert main(["finetune", *flags(values), "--device", "cpu", "--out", str(run)]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    tree = read_page(run)
    (matrix,) = find_by_class(tree, "confusion")
    rows = read_table(matrix)
    assert rows[0][1:] == [row[0] for row in rows[1:]] == metrics["classes"] == sorted(HOSTILE)
    counts = np.array(metrics["confusion"])
    body = list(matrix.iter(f"{HTML}tr"))[1:]
    shown = [[int(next(iter(cell.itertext()))) for cell in list(row)[1:]] for row in body]
    assert shown == counts.tolist()
    # one epoch is not enough for this network, so that there are mistakes to show
    wrong = counts.sum() - np.trace(counts)
    assert wrong > 0
    (mistakes,) = find_by_class(tree, "mistakes")
    cards = list(mistakes)
    assert len(cards) == len(list(mistakes.iter(f"{HTML}img"))) == min(24, wrong)
    pairs = [tuple(read_text(value) for value in card.iter(f"{HTML}dd"))[:2] for card in cards]
    for pair in pairs:
        true, predicted = map(metrics["classes"].index, pair)
        assert counts[true, predicted] >= pairs.count(pair)
    kept = json.loads((run / "mistakes" / "mistakes.json").read_text())
    assert all(f"/{each['true']}/" in each["image"] for each in kept)
    assert len(list(tree.iter(f"{HTML}script"))) == 1

    # by hand it is the same page, but for the minute
    before = (run / "report.html").read_text().partition("<footer")[0]
    ehm.write_report(run)
    assert (run / "report.html").read_text().partition("<footer")[0] == before


def test_a_report_that_cannot_be_written_ends_no_run(images, tmp_path, monkeypatch, capsys):
    def render(record):
        with full_disk():
            (tmp_path / "file").write_text("x")

    monkeypatch.setattr(write, "render_page", render)
    result = ehm.train(
        overrides=[f"{key}={value}" for key, value in {**TINY, **RUN, "data.source": images}.items()],
        device="cpu",
        out=tmp_path / "run",
    )
    assert result.encoder.is_file()
    said = capsys.readouterr().out
    assert "the report was not written: [Errno 27] File too large" in said
    assert f"ehm report {tmp_path / 'run'} writes the report" in said


@pytest.mark.parametrize("name", sorted(path.name for path in WRITTEN.iterdir()))
def test_runs_of_earlier_versions_have_reports_too(name, tmp_path):
    run = tmp_path / name
    shutil.copytree(WRITTEN / name, run)
    assert main(["report", str(run)]) == 0
    step = read_record(run).state["step"]
    assert f"after step {step}" in read_text(find_by_class(read_page(run), "pill")[0])
