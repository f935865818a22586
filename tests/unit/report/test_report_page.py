"""The page: valid, closed to the outside, true to the run's folder, and safe with any name in it."""

import base64
import hashlib
import os
import re
import shlex

import numpy as np
import pytest
from full_disk import full_disk
from PIL import Image
from run_folders import (
    HTML,
    SVG,
    find_by_class,
    finetune_config,
    parse_page,
    pretrain_config,
    read_table,
    read_text,
    write_run,
)
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from ehm.cli import build_parser, main
from ehm.config import DetectionConfig, RetrievalConfig, SegmentationConfig, TokenizerConfig
from ehm.errors import CheckpointError
from ehm.report.known_figures import GROUPS, KNOWN_FIGURES
from ehm.report.mistakes import Mistake, save_mistakes
from ehm.report.next_steps import list_next_steps
from ehm.report.page import render_page
from ehm.report.record import read_record
from ehm.report.write import write_final_report, write_report
from ehm.tasks.classification.metrics import report_classification
from ehm.tasks.classification.multi_label_metrics import report_labels
from ehm.tasks.detection.metrics import DetectionReport, Precision
from ehm.tasks.retrieval.metrics import Protocol, RetrievalReport
from ehm.tasks.segmentation.metrics import SegmentationReport

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "{{ 7 * 7 }} [red]&amp;", r"caf\xe9 </style>"]


def lines_of(keys, steps=4):
    """Lines of metrics of so many epochs of ten steps."""
    return [{"step": 10 * n, "epoch": float(n), **dict.fromkeys(keys, 1 / n)} for n in range(1, steps + 1)]


def state_of(step, **more):
    """The metadata of a checkpoint after a step, ten of which are an epoch."""
    return {"kind": "pretrain", "step": step, "epoch": step / 10, "versions": {"ehm": "0.1.0"}, "device": "cpu", **more}


def classifier(folder, classes, labels, scores, **more):
    """The folder of a classifier's run that was measured on labels and scores, and its page."""
    report = report_classification(np.array(labels), np.array(scores), classes)
    metrics = {"part": "fold 1 of 5", **report.to_json(), **more}
    state = state_of(40, kind="classifier", classes=list(classes))
    run = write_run(folder, finetune_config(), lines_of(["loss", "top1"]), metrics, state)
    return run, render_page(read_record(run))


@pytest.fixture
def answers():
    """Labels and scores of 200 images in four classes whose names are hostile."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    return labels, rng.normal(size=(200, 4)) + 1.5 * np.eye(4)[labels]


def test_nothing_is_loaded_from_outside(tmp_path):
    lines = lines_of([key for row in KNOWN_FIGURES for key in row.keys])
    run = write_run(tmp_path / "run", pretrain_config(), lines, state=state_of(40))
    (run / "pictures").mkdir()
    Image.new("RGB", (40, 30), "red").save(run / "pictures" / "reconstruction-00000040.png")
    text = render_page(read_record(run))
    tree = parse_page(text)
    for element in tree.iter():
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            value = element.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (element.tag, value)
        assert not element.tag.endswith(("link", "iframe", "object", "base"))
    assert not re.search(r"@import|url\(|https?://", text)
    sections = {element.get("id") for element in tree.iter() if element.get("id")}
    linked = {element.get("href")[1:] for element in tree.iter(f"{HTML}a")}
    assert linked <= sections


def test_the_browser_is_told_to_run_its_own_script_alone(tmp_path):
    tree = parse_page(render_page(read_record(write_run(tmp_path / "run", pretrain_config()))))
    policy = next(element.get("content") for element in tree.iter(f"{HTML}meta") if element.get("http-equiv"))
    (script,) = tree.iter(f"{HTML}script")
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert f"script-src 'sha256-{digest}'" in policy


def test_every_known_figure_is_drawn_and_any_other_too(tmp_path):
    keys = [key for row in KNOWN_FIGURES for key in row.keys]
    assert len(set(keys)) == len(keys)
    run = write_run(tmp_path / "run", pretrain_config(), lines_of([*keys, "something_new"]))
    tree = parse_page(render_page(read_record(run)))
    titles = [next(figure.iter(f"{HTML}h4")).text for figure in find_by_class(tree, "chart")]
    expected = [row.title for group in GROUPS for row in KNOWN_FIGURES if row.group == group]
    assert titles == [*expected, "something_new"]
    assert len(list(tree.iter(f"{SVG}path"))) == len(keys) + 1
    assert all(svg.get("aria-label") for svg in tree.iter(f"{SVG}svg"))


@pytest.mark.parametrize(
    ("step", "most", "status"),
    [
        (40, None, "Complete: 40 steps"),
        (20, 20, "Stopped early by run.max_steps, after step 20 of 40"),
        (20, None, "Not complete: in progress or interrupted, after step 20 of 40"),
    ],
)
def test_it_says_how_far_the_run_came_and_how_to_go_on(tmp_path, step, most, status):
    config = pretrain_config(run={"max_steps": most})
    run = write_run(tmp_path / "run", config, lines_of(["loss"], step // 10), state=state_of(step))
    text = render_page(read_record(run))
    (pill,) = find_by_class(parse_page(text), "pill")
    assert read_text(pill) == status
    assert ("--resume" in text) == (step < 40)
    assert ("run.max_steps=null" in text) == (most is not None)


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
    run = write_run(tmp_path / "run", pretrain_config())
    assert "after step 0" in render_page(read_record(run))


def test_facts_and_changed_settings_are_the_runs(tmp_path):
    data = {"train": {"images": 12345}, "val": None}
    config = pretrain_config(masking="block", mask={"ratio": 0.6}, data={"source": "photographs", "workers": 3})
    run = write_run(tmp_path / "run", config, lines_of(["loss"]), state=state_of(40, data=data))
    tree = parse_page(render_page(read_record(run)))
    (facts,) = find_by_class(tree, "facts")
    shown = read_text(facts)
    length = "40 of 40 steps, 4 epochs of 10"
    for fact in ("photographs, 12,345 images", "block, 60% hidden", length, "ehm 0.1.0", "cpu"):
        assert fact in shown
    rows = {row[0]: row[1:] for row in read_table(next(tree.iter(f"{HTML}table")))[1:]}
    assert rows["mask.ratio"][:2] == ["0.6", "0.75"]
    assert rows["data.workers"][0] == "3"
    assert rows["masking"][:2] == ["block", "evolved"]
    assert "optim.weight_decay" not in rows
    assert all(meaning.endswith(".") for _, _, meaning in rows.values())


@pytest.mark.parametrize("source", ["elpv", "/data/our photographs"])
@pytest.mark.parametrize("step", [20, 40])
@pytest.mark.parametrize("kind", ["pretrain", "classification", "segmentation", "detection", "retrieval", "tokenizer"])
def test_the_next_commands_are_ones_that_ehm_knows(tmp_path, kind, step, source):
    configs = {"pretrain": pretrain_config(), "classification": finetune_config(), "tokenizer": TokenizerConfig()}
    configs |= {"segmentation": SegmentationConfig(), "detection": DetectionConfig(), "retrieval": RetrievalConfig()}
    config = configs[kind].model_copy(update={"data": configs[kind].data.model_copy(update={"source": source})})
    run = write_run(tmp_path / "a run", config, state=state_of(step))
    record = read_record(run)
    assert record.kind == kind
    for step in list_next_steps(record):
        for line in step.command.replace("\\\n", " ").splitlines():
            words = shlex.split(line)
            assert words[0] == "ehm"
            # ends with an error if a command or a flag is not known
            build_parser(words[1:2]).parse_args(words[1:])
            assert any(str(run) in word for word in words)


def test_tables_of_a_classifier_are_scikit_learns(tmp_path, answers):
    labels, scores = answers
    _, text = classifier(tmp_path / "run", HOSTILE, labels, scores)
    tree = parse_page(text)
    predicted = scores.argmax(1)
    (matrix,) = find_by_class(tree, "confusion")
    rows = read_table(matrix)
    names = [" ".join(name.split()) for name in HOSTILE]
    assert rows[0] == ["", *names]
    counts = [list(map(int, row[1:])) for row in _split_cells(matrix)]
    assert counts == confusion_matrix(labels, predicted).tolist()

    table = read_table(_find_table(tree, "precision"))
    assert table[0] == ["class", "precision", "recall", "F1", "images"]
    expected = np.array(precision_recall_fscore_support(labels, predicted))
    for number, row in enumerate(table[1:]):
        assert row[0] == names[number]
        assert row[1:4] == [f"{100 * value:.1f}%" for value in expected[:3, number]]
        assert row[4] == str(int(expected[3, number]))


def _split_cells(matrix):
    """Return the rows of a confusion matrix with the counts alone, without the shares below them."""
    rows = []
    for row in list(matrix.iter(f"{HTML}tr"))[1:]:
        rows.append([next(iter(cell.itertext())) for cell in row])
    return rows


def _find_table(tree, column):
    """Return the first table that has a column."""
    return next(table for table in tree.iter(f"{HTML}table") if column in read_table(table)[0])


def test_many_classes_have_their_most_confused_pairs(tmp_path):
    rng = np.random.default_rng(2)
    classes = [f"class {number}" for number in range(1000)]
    labels = np.repeat(np.arange(1000), 5)
    scores = np.eye(1000)[labels]
    # of class 7, four of five are called class 8, and of all classes, one in ten images is another at random
    scores[35:39] = np.eye(1000)[8]
    for row in rng.choice(np.arange(100, 5000), 490, replace=False):
        scores[row] = np.eye(1000)[rng.integers(1000)]
    run, text = classifier(tmp_path / "run", classes, labels, scores)
    tree = parse_page(text)
    assert not find_by_class(tree, "confusion")
    pairs = read_table(_find_table(tree, "called"))
    assert pairs[1] == ["class 7", "class 8", "4", "80.0%"]
    assert len(pairs) <= 26
    worst = read_table(_find_table(tree, "precision"))
    assert len(worst) == 21
    shown = [float(row[3].removesuffix("%")) for row in worst[1:]]
    f1 = precision_recall_fscore_support(labels, scores.argmax(1), zero_division=0)[2]
    np.testing.assert_allclose(shown, 100 * np.sort(f1)[:20], atol=0.06)
    assert len(text) < 2_000_000
    assert run.is_dir()


def test_names_are_text_and_nothing_else(tmp_path, answers):
    labels, scores = answers
    folder = tmp_path / HOSTILE[0].replace("/", "|")
    run, _ = classifier(folder, HOSTILE, labels, scores)
    name = os.fsdecode(b"caf\xe9<b>.png")
    save_mistakes(run, [(Mistake(name, HOSTILE[0], HOSTILE[1], 0.987), Image.new("RGB", (9, 9), "blue"))])
    text = write_report(run).read_text(encoding="utf-8")
    tree = parse_page(text)
    assert len(list(tree.iter(f"{HTML}script"))) == 1
    assert not [element for element in tree.iter() if any(name.startswith("on") for name in element.attrib)]
    assert "49" not in [read_text(cell) for cell in tree.iter(f"{HTML}th")]
    (card,) = find_by_class(tree, "mistakes")
    assert [read_text(value) for value in card.iter(f"{HTML}dd")] == [
        HOSTILE[0],
        HOSTILE[1],
        "98.7%",
        r"caf\xe9<b>.png",
    ]
    (image,) = card.iter(f"{HTML}img")
    assert image.get("src").startswith("data:image/jpeg;base64,")


def test_a_picture_that_is_gone_or_broken_is_no_error(tmp_path, answers):
    run, _ = classifier(tmp_path / "run", HOSTILE, *answers)
    readable = Mistake("a.png", "x", "y", 0.9)
    gone = Mistake("b.png", "x", "y", 0.8)
    save_mistakes(run, [(readable, Image.new("RGB", (9, 9))), (gone, None)])
    (run / "mistakes" / "00.jpg").write_bytes(b"no picture")
    (run / "pictures").mkdir()
    (run / "pictures" / "page.png").write_bytes(b"no picture")
    tree = parse_page(render_page(read_record(run)))
    assert len(find_by_class(tree, "missing")) == 2
    (run / "mistakes" / "mistakes.json").write_text('[{"image": 1}]')
    (run / "metrics.json").write_text('{"classes": ["a"]')
    assert not find_by_class(parse_page(render_page(read_record(run))), "mistakes")


def test_the_newest_pages_are_embedded_and_small(tmp_path):
    run = write_run(tmp_path / "run", pretrain_config(), lines_of(["loss"]))
    (run / "pictures").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (600, 2000, 3), dtype=np.uint8)
    for step in (10, 40):
        Image.fromarray(noise).save(run / "pictures" / f"reconstruction-{step:08d}.png")
    Image.new("RGB", (30, 20)).save(run / "pictures" / "overview.png")
    text = render_page(read_record(run))
    figures = find_by_class(parse_page(text), "picture")
    assert [read_text(figure) for figure in figures] == ["overview", "reconstruction, after step 40"]
    image = next(figures[1].iter(f"{HTML}img"))
    assert (image.get("width"), image.get("height")) == ("1600", "480")
    assert len(text) < 4_000_000


def test_other_tasks_have_tables_of_their_classes(tmp_path):
    segmentation = SegmentationReport(7, 0.5, 0.75, 0.625, ("sky", "<b>"), (0.4, None), (0.25, None), (1200, 0))
    boxes = Precision(0.5, 0.625, 0.25, None, None, 0.5, (0.5, None))
    detection = DetectionReport(7, ("cat", "<b>"), (12, 0), boxes, None)
    retrieval = RetrievalReport({"medium": Protocol(9, 0.5, (1.0, 0.75, 0.5))}, 70, 128)
    expected = {
        "segmentation": [["class", "accuracy", "IoU", "pixels"], ["sky", "25.0%", "40.0%", "1,200"]],
        "detection": [["class", "AP of boxes", "objects"], ["cat", "50.0%", "12"]],
        "retrieval": [["protocol", "mP@1", "mP@5", "mP@10", "mAP", "queries"]],
    }
    expected["segmentation"] += [["<b>", "–", "–", "0"]]
    expected["detection"] += [["<b>", "–", "0"]]
    expected["retrieval"] += [["medium", "100.0%", "75.0%", "50.0%", "50.0%", "9"]]
    kinds = {"segmentation": SegmentationConfig, "detection": DetectionConfig, "retrieval": RetrievalConfig}
    reports = {"segmentation": segmentation, "detection": detection, "retrieval": retrieval}
    for kind, config in kinds.items():
        run = write_run(tmp_path / kind, config(), lines_of(["loss"]), {"part": "val", **reports[kind].to_json()})
        tree = parse_page(render_page(read_record(run)))
        assert read_table(_find_table(tree, expected[kind][0][1])) == expected[kind]
        assert "50.0%" in read_text(find_by_class(tree, "tiles")[0])


def test_a_probe_shows_both_of_its_measurements(tmp_path, answers):
    labels, scores = answers
    from ehm.config import ProbeConfig

    linear = report_classification(labels, scores, HOSTILE).to_json()
    neighbours = report_classification(labels, -scores, HOSTILE).to_json()
    metrics = {"linear": linear, "neighbours": neighbours}
    run = write_run(tmp_path / "run", ProbeConfig(), lines_of(["loss"]), metrics)
    tree = parse_page(render_page(read_record(run)))
    assert len(find_by_class(tree, "confusion")) == 2
    headings = [read_text(heading) for heading in tree.iter(f"{HTML}h3")]
    assert "Linear probe, 200 images" in headings
    assert "Nearest neighbours, 200 images" in headings


def test_the_command_writes_it_and_a_folder_without_a_run_is_one_sentence(tmp_path, capsys):
    run = write_run(tmp_path / "run", pretrain_config(), lines_of(["loss"]))
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"Report: {run / 'report.html'}\n"
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "nothing"):
        assert main(["report", str(tmp_path / folder)]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"ehm report: {tmp_path / folder}: no run there")
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("batch_size: 32", "batch_size: many", "optim.batch_size: should be a whole number, not 'many'"),
        ("ratio: 0.75", "ratio: null", "mask.ratio: should be a number, not None"),
        ("image_size:\n- 96\n- 96", "image_size: []", "image_size: should be a number of pixels or [height, width]"),
    ],
)
def test_a_configuration_that_was_edited_wrongly_is_one_sentence(old, new, said, tmp_path):
    run = write_run(tmp_path / "run", pretrain_config(), [{"step": 1, "loss": 1.0}])
    file = run / "config.yaml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(CheckpointError) as error:
        write_report(run)
    assert str(error.value).startswith(f"{file}: {said}")


def test_keys_that_a_configuration_leaves_out_have_their_defaults(tmp_path):
    run = write_run(tmp_path / "run", pretrain_config(), [{"step": 1, "loss": 1.0}])
    (run / "config.yaml").write_text("objective: mae\nencoder: vit_tiny\noptim: {batch_size: 64}\n")
    assert read_record(run).setting("mask.ratio") == 0.75
    assert "batch 64, peak rate " in read_text(parse_page(render_page(read_record(run))))


def test_a_full_disk_ends_no_run(tmp_path, capsys):
    run = write_run(tmp_path / "run", pretrain_config(), lines_of(["loss"]))
    with full_disk():
        write_final_report(run)
    said = capsys.readouterr().out
    assert f"{run / 'report.html'}: the report was not written: " in said
    assert "File too large" in said
    assert f"ehm report {run} writes the report" in said
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "metrics.jsonl"]


def test_a_fault_in_drawing_ends_no_run(tmp_path, capsys):
    run = write_run(tmp_path / "run", pretrain_config(), lines_of(["loss"]))

    def draw(folder):
        raise ZeroDivisionError

    write_final_report(run, draw)
    assert "the report was not written: ZeroDivisionError" in capsys.readouterr().out


def test_labels_that_are_guessed_are_named(tmp_path):
    rng = np.random.default_rng(0)
    targets = rng.random((60, 3)) < [0.5, 0.4, 0.1]
    # the first is told, the second the wrong way round, and the third is rare
    scores = np.stack([targets[:, 0] * 0.8 + 0.1, 0.9 - targets[:, 1] * 0.8, targets[:, 2] * 0.5 + 0.2], axis=1)
    report = report_labels(targets, scores, ("told", "mistaken", "rare"))
    state = state_of(40, kind="classifier", classes=list(report.classes))
    run = write_run(tmp_path / "run", finetune_config(), lines_of(["loss", "mean_ap"]), report.to_json(), state)
    tree = parse_page(render_page(read_record(run)))
    table = read_table(_find_table(tree, "average precision"))
    assert [row[0] for row in table[1:]] == ["told", "mistaken", "rare"]
    shown = read_text(tree)
    assert "mistaken is ranked no better than by chance" in shown
    assert "told is ranked" not in shown
    assert "Fewer than 20 images measure 1 of the 3 labels" in shown
