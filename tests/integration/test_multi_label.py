"""Several labels an image, from a table of them to the server's answer."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet
from server_requests import send_request
from serving import running
from sklearn.metrics import average_precision_score, f1_score

from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.export.pipeline import export
from ehm.deploy.predict.bulk.table import write_rows
from ehm.deploy.predict.command import predict
from ehm.errors import ConfigError, DataError, ExportError
from ehm.storage.checkpoint import newest_checkpoint, open_checkpoint
from ehm.tasks.classification.probe import probe
from ehm.tasks.evaluate import evaluate
from ehm.tasks.finetune import finetune

SETTINGS = {
    "model.init": "scratch",
    "model.encoder": "vit_tiny",
    "model.width": 32,
    "model.depth": 1,
    "model.heads": 2,
    "model.image_size": 16,
    "model.patch_size": 8,
    "model.drop_path": 0,
    "augment.rand_augment": "null",
    "augment.mixup": 0,
    "augment.cutmix": 0,
    "augment.random_erasing": 0,
    "data.crop_scale": "[1, 1]",
    "data.workers": 0,
    "data.columns.label": "found",
    "data.columns.separator": ";",
    "data.columns.group": "patient",
    "optim.epochs": 6,
    "optim.batch_size": 16,
    "optim.base_lr": 0.05,
    "optim.warmup_epochs": 0,
    "optim.dtype": "float32",
    "run.trackers": "[]",
}


def settings(**changes):
    values = {**SETTINGS, **{key.replace("__", "."): value for key, value in changes.items()}}
    return [f"{key}={value}" for key, value in values.items()]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Pictures that are red, or blue, or both, or neither, four of each patient, in a table."""
    root = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    with (root / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "found", "patient"])
        for number in range(80):
            present = {"red": rng.random() < 0.5, "blue": rng.random() < 0.3}
            pixels = rng.integers(0, 120, (16, 16, 3), np.uint8)
            pixels[:8, :, 0] += 120 * present["red"]
            pixels[8:, :, 2] += 120 * present["blue"]
            Image.fromarray(pixels).save(root / f"{number}.png")
            rows.writerow([f"{number}.png", ";".join(name for name in present if present[name]), f"p{number // 4}"])
    return root / "labels.csv"


@pytest.fixture(scope="module")
def run(table, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    result = finetune(
        device="cpu",
        overrides=settings(data__source=table, class_weights="balanced", sampling="balanced"),
        out=out,
    )
    return result


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    return export(run.out, out=tmp_path_factory.mktemp("bundle") / "bundle")


def read_predictions(folder):
    with (folder / "predictions.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_it_learns_the_labels_and_writes_every_answer(run, table):
    assert run.report.mean_ap > 0.95
    assert run.report.classes == ("blue", "red")
    rows = read_predictions(run.out)
    probabilities = np.array([[float(row[f"probability of {name}"]) for name in ("blue", "red")] for row in rows])
    targets = np.array([[name in row["true"].split(";") for name in ("blue", "red")] for row in rows])
    predicted = np.array([[name in row["predicted"].split(";") for name in ("blue", "red")] for row in rows])
    assert run.report.mean_ap == pytest.approx(average_precision_score(targets, probabilities), abs=1e-6)
    assert run.report.f1 == pytest.approx(f1_score(targets, predicted, average=None))
    # no patient is on both sides
    with table.open() as file:
        patient_of = {row["path"]: row["patient"] for row in csv.DictReader(file)}
    held_out = {row["image"].rpartition("/")[2] for row in rows}
    patients = {patient_of[name] for name in held_out}
    assert sum(patient in patients for patient in patient_of.values()) == len(held_out)
    metadata = open_checkpoint(run.out).metadata
    assert metadata["thresholds"] == pytest.approx(run.report.thresholds)
    assert (run.out / "mistakes" / "mistakes.json").is_file()
    assert "average precision" in (run.out / "report.html").read_text(encoding="utf-8")


def test_evaluation_takes_the_thresholds_of_the_training(run, table, tmp_path):
    again = evaluate(run.out, device="cpu", out=tmp_path)
    assert again.thresholds == run.report.thresholds
    assert not again.chosen_here
    assert (again.mean_ap, again.f1) == (run.report.mean_ap, run.report.f1)
    assert read_predictions(tmp_path) == read_predictions(run.out)
    with pytest.raises(DataError, match="its images do not have several labels"):
        evaluate(run.out, device="cpu", overrides=["data.columns.separator=null", "data.columns.label=patient"])


def test_a_stopped_run_ends_as_one_that_was_not(run, table, tmp_path):
    values = settings(data__source=table, class_weights="balanced", sampling="balanced")
    finetune(device="cpu", overrides=[*values, "run.max_steps=9"], out=tmp_path / "run")
    finetune(device="cpu", overrides=["run.max_steps=null"], out=tmp_path / "run", resume=True)
    files = [newest_checkpoint(folder / "checkpoints") / "model.safetensors" for folder in (run.out, tmp_path / "run")]
    assert files[0].read_bytes() == files[1].read_bytes()
    with table.open() as file:
        text = file.read()
    table.write_text(text.replace("p0\n", "p1\n"))
    try:
        with pytest.raises(ConfigError, match="the groups of its 80 images to train on have changed"):
            finetune(device="cpu", out=tmp_path / "run", resume=True)
    finally:
        table.write_text(text)


def test_bundle_prediction_and_server_give_the_same_labels(run, bundle, tmp_path):
    manifest = Bundle.open(bundle).manifest
    assert manifest.task == "multi_label"
    assert manifest.thresholds == pytest.approx(run.report.thresholds)
    rows = read_predictions(run.out)[:6]
    predictions = predict(bundle, [row["image"] for row in rows])
    for row, prediction in zip(rows, predictions, strict=True):
        assert ";".join(prediction.present) == row["predicted"]
        for name, share in prediction.classes:
            assert share == pytest.approx(float(row[f"probability of {name}"]), abs=1e-4)
        assert prediction.as_dict()["present"] == list(prediction.present)
        for name in prediction.present:
            assert f"{name}, present" in str(prediction)
    write_rows(tmp_path / "part.parquet", manifest, predictions, None)
    assert parquet.read_table(tmp_path / "part.parquet")["present"].to_pylist() == [
        list(prediction.present) for prediction in predictions
    ]
    with running([bundle]) as (address, _):
        response = send_request(address, "POST", "/v1/classify?top=1", Path(rows[0]["image"]).read_bytes())
    assert response.status == 200
    assert response.body["present"] == list(predictions[0].present)
    assert len(response.body["classes"]) == 1
    assert "1 / (1 + exp(-logit))" in (bundle / "README.md").read_text(encoding="utf-8")


def test_a_manifest_needs_a_threshold_for_each_label(bundle, tmp_path):
    values = json.loads((bundle / "manifest.json").read_text())
    values["thresholds"] = [0.5]
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(ExportError, match="1 thresholds for 2 labels"):
        Bundle.open(tmp_path)


def test_frozen_features_are_probed_by_all_figures(run, table, tmp_path):
    removed = ("model.drop_path", "optim.epochs", "optim.base_lr")
    values = [each for each in settings(data__source=table) if not each.startswith(removed)]
    values = [each for each in values if not each.startswith(("model.", "augment."))]
    result = probe(
        device="cpu",
        overrides=[*values, f"model.init={run.out}", "optim.epochs=2", "optim.base_lr=0.1", "neighbours=5", "pool=avg"],
        out=tmp_path,
    )
    assert result.linear.classes == result.neighbours.classes == ("blue", "red")
    assert result.neighbours.mean_ap > 0.8
