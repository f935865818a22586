"""Findings of a report: each fault of the curves is named, and a healthy run gives rise to nothing."""

import numpy as np
import pytest
from run_folders import finetune_config, pretrain_config, write_run

from ehm.report.findings import find_in_curves
from ehm.report.measured import find_in_measurement, read_measurements
from ehm.report.record import read_record
from ehm.tasks.classification.metrics import report_classification

STEPS = np.arange(10, 401, 10)
PROGRESS = STEPS / STEPS[-1]
HEALTHY = {
    "loss": 0.4 + 0.6 * np.exp(-8 * PROGRESS),
    "knn": 0.7 - 0.4 * np.exp(-8 * PROGRESS),
    "rankme": 20 + 10 * PROGRESS,
    "feature_spread": np.full(40, 0.3),
    "target_spread": np.full(40, 0.8),
    "grad_norm": np.full(40, 1.5),
    "data_wait": np.full(40, 0.02),
    "masks_wait": np.full(40, 0.35),
    "tree_height": np.full(40, 15.0),
}


def find(folder, config=None, steps=400, **curves):
    """Return the levels and texts of what is found in healthy curves with others in their place."""
    lines = []
    for index, step in enumerate(STEPS):
        values = {key: float(curve[index]) for key, curve in (HEALTHY | curves).items()}
        lines.append({"step": int(step), "epoch": step / 100, **values})
    state = {"kind": "pretrain", "step": steps, "epoch": steps / 100}
    run = write_run(folder, config or pretrain_config(), lines, state=state)
    return [(finding.level, f"{finding.text} {finding.remedy}") for finding in find_in_curves(read_record(run))]


def test_a_healthy_run_has_no_findings(tmp_path):
    assert find(tmp_path) == []


@pytest.mark.parametrize(
    ("curves", "level", "sentences"),
    [
        ({"loss": 1 - 0.6 * PROGRESS}, "note", ["loss was still falling", "optim.epochs=8"]),
        ({"knn": 0.3 + 0.4 * PROGRESS}, "note", ["k-NN accuracy was still rising", "70.0%", "optim.epochs=8"]),
        ({"knn": 0.7 - 0.3 * PROGRESS}, "warning", ["fell from 69.2% at step 10 to 40.0%"]),
        ({"rankme": 30 - 28 * PROGRESS}, "warning", ["RankMe fell", "collapse"]),
        ({"feature_spread": np.where(PROGRESS < 0.8, 0.3, 0.005)}, "warning", ["Spread of features fell"]),
        ({"target_spread": 0.8 - 0.79 * PROGRESS}, "warning", ["Spread of the targets fell"]),
        ({"grad_norm": np.where(STEPS == 300, 90, 1.5)}, "warning", ["peaks of 90", "optim.clip_grad=1"]),
        ({"data_wait": np.full(40, 0.42)}, "warning", ["waited for images 42% of the time", "data.workers"]),
        ({"masks_wait": np.full(40, 0.5)}, "warning", ["waited for masks 50% of the time", "mask.build=device"]),
        ({"tree_height": np.full(40, 50.0)}, "warning", ["chains", "50 levels high, for 64 patches", "sinkhorn"]),
        ({"loss": np.where(STEPS == 300, np.nan, HEALTHY["loss"])}, "warning", ["1 values that are not finite"]),
    ],
)
def test_a_fault_is_named_once(tmp_path, curves, level, sentences):
    found = find(tmp_path, **curves)
    assert [each for each, _ in found] == [level]
    assert all(sentence in found[0][1] for sentence in sentences), found


def test_a_run_whose_features_were_not_measured_is_told_how_to(tmp_path):
    run = write_run(tmp_path, pretrain_config(), [{"step": 10, "epoch": 1.0, "loss": 1.0}])
    ((level, text),) = [(finding.level, finding.text) for finding in find_in_curves(read_record(run))]
    assert level == "note"
    assert "they were not measured during the run" in text


def test_a_run_that_is_not_complete_is_not_told_to_be_longer(tmp_path):
    config = pretrain_config(optim={"epochs": 40})
    assert find(tmp_path, config, loss=1 - 0.6 * PROGRESS, knn=0.3 + 0.4 * PROGRESS) == []


def test_a_kept_batch_is_named(tmp_path):
    (tmp_path / "broken" / "step-00000007").mkdir(parents=True)
    ((level, text),) = find(tmp_path)
    assert level == "warning"
    assert str(tmp_path / "broken") in text


def measure(folder, labels, scores, classes):
    """Return what is found in the figures of a classifier."""
    metrics = report_classification(np.array(labels), np.array(scores), classes).to_json()
    record = read_record(write_run(folder, finetune_config(), metrics=metrics))
    (measurement,) = read_measurements(record)
    return [finding.text for finding in find_in_measurement(measurement)]


def test_a_classifier_that_only_guesses_is_called_so(tmp_path):
    labels = np.repeat([0, 1], [80, 30])
    found = measure(tmp_path, labels, np.tile([1.0, 0.0], (110, 1)), ["common", "rare"])
    assert "Top-1 72.7% is no better than answering common every time (72.7%)." in found
    assert "rare is never predicted." in found


def test_the_standard_error_is_that_of_a_share(tmp_path):
    labels = np.repeat([0, 1], 100)
    scores = np.eye(2)[labels]
    scores[:20] = scores[:20, ::-1]
    found = measure(tmp_path, labels, scores, ["a", "b"])
    expected = 100 * np.std(np.repeat([1, 0], [180, 20])) / np.sqrt(200)
    assert found == [
        f"On 200 images the standard error of top-1 is {expected:.1f} points: take differences below "
        f"{2 * expected:.1f} points for chance."
    ]


def test_a_better_checkpoint_before_the_last_is_named(tmp_path):
    lines = [{"step": 5 * (n + 1), "epoch": n + 1.0, "top1": v} for n, v in enumerate([0.6, 0.8, 0.7, 0.65])]
    best = {"checkpoint": "runs/x/best/step-00000010", "top1": 0.8}
    record = read_record(write_run(tmp_path, finetune_config(), lines, metrics={"best": best}))
    (finding,) = find_in_curves(record)
    assert "80.0% instead of 65.0%" in finding.text
    assert "runs/x/best/step-00000010" in finding.remedy
