"""ViTs of every form on the command line: fine-tuned, measured, exported, inspected, and used."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from tiny import RUN
from vit_forms import FORMS, write_form

from ehm.cli import main
from ehm.deploy.predict.predictor import Predictor
from ehm.tasks.evaluate import evaluate

SETTINGS = {
    **RUN,
    "optim.warmup_epochs": 0,
    "optim.base_lr": 0.001,
    "run.max_steps": 2,
    "augment.rand_augment": "null",
    "folds": 2,
    "model.image_size": "null",
}
PROBE = {
    **RUN,
    "optim.epochs": 1,
    "optim.warmup_epochs": 0,
    "run.max_steps": 2,
    "folds": 2,
    "model.image_size": "null",
    "neighbours": 3,
}


def write_pictures(folder, lowest):
    """Sixteen small pictures of two classes, whose darkest value is that of ``lowest``."""
    rng = np.random.default_rng(0)
    for index in range(16):
        name = sorted(lowest)[index % 2]
        path = folder / name / f"{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        corners = Image.fromarray(rng.integers(lowest[name], lowest[name] + 128, (4, 4, 3), dtype=np.uint8))
        corners.resize((70, 66), Image.Resampling.BICUBIC).save(path)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pictures of bright and of dark colours."""
    return write_pictures(tmp_path_factory.mktemp("pictures"), {"bright": 128, "dark": 0})


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """Pictures of two classes that nothing tells apart, so that measurements show the slightest difference."""
    return write_pictures(tmp_path_factory.mktemp("alike"), {"one": 64, "other": 64})


def run(command, settings, *more):
    overrides = [f"--set={key}={value}" for key, value in settings.items()]
    assert main([command, "--device", "cpu", *map(str, more), *overrides]) in (0, None)


@pytest.mark.parametrize("form", FORMS)
def test_a_fine_tuned_model_measures_the_same_from_its_folder(form, alike, tmp_path, capsys):
    file = write_form(form, tmp_path / "encoder.safetensors")
    pool = "map" if form == "siglip" else "avg"
    settings = {**SETTINGS, "data.source": alike, "model.init": file, "pool": pool}
    run("finetune", settings, "--out", tmp_path / "run")
    said = " ".join(capsys.readouterr().out.split())
    assert "images are prepared by data.mean [0.5, 0.4, 0.3], data.std [0.2, 0.3, 0.4]" in said
    measured = json.loads((tmp_path / "run" / "metrics.json").read_text())
    again = json.loads(json.dumps(evaluate(tmp_path / "run", device="cpu").to_json()))
    assert again["auc"] < 1
    assert {key: measured[key] for key in again} == again


def test_a_rotary_vit_goes_from_fine_tuning_to_prediction(pictures, tmp_path, capsys):
    file = write_form("dinov3", tmp_path / "encoder.safetensors")
    longer = {**SETTINGS, "run.max_steps": "null", "optim.epochs": 12, "optim.base_lr": 0.02, "augment.mixup": 0}
    settings = {**longer, "augment.cutmix": 0, "data.source": pictures, "model.init": file}
    run("finetune", settings, "--out", tmp_path / "run")
    run("evaluate", {}, tmp_path / "run", "--out", tmp_path / "measured")
    top1 = json.loads((tmp_path / "measured" / "metrics.json").read_text())["top1"]
    assert main(["export", str(tmp_path / "run"), "--head", "multi", "--out", str(tmp_path / "bundle")]) in (0, None)
    files = sorted(pictures.glob("*/*.png"))
    assert main(["predict", str(tmp_path / "bundle"), *map(str, files), "--out", str(tmp_path / "found")]) in (0, None)
    lines = (tmp_path / "found" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == len(files)
    # the manifest says the pixels that the weights were trained on
    preprocessing = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["preprocessing"]
    assert preprocessing["mean"] == [0.5, 0.4, 0.3]
    assert Predictor(tmp_path / "bundle").manifest.output("patches").shape == ("batch", 48, 4, 4)
    capsys.readouterr()
    assert top1 > 0.6


@pytest.mark.parametrize(
    ("form", "settings"),
    [
        ("siglip", {"pool": "map", "neighbours_pool": "map"}),
        ("dinov3", {"pool": "token", "neighbours_pool": "token"}),
        ("aimv2", {"pool": "avg"}),
    ],
)
def test_probes_pool_as_they_are_told(form, settings, pictures, tmp_path, capsys):
    file = write_form(form, tmp_path / "encoder.safetensors")
    values = {**PROBE, "data.source": pictures, "model.init": file, **settings}
    run("probe", values, "--out", tmp_path / "probe")
    written = json.loads((tmp_path / "probe" / "metrics.json").read_text())
    assert {"linear", "neighbours"} <= set(written)
    assert written["neighbours"]["top1"] >= 0.5
    run("evaluate", {"data.source": pictures, "pool": settings["pool"].replace("avg", "gem")}, file, "--task=retrieval")
    assert re.search(r"mAP", capsys.readouterr().out)


def test_nearest_neighbours_cannot_be_compared_by_a_token_that_is_not_there(pictures, tmp_path, capsys):
    file = write_form("siglip", tmp_path / "encoder.safetensors")
    values = {**PROBE, "data.source": pictures, "model.init": file, "pool": "map", "neighbours_pool": "token"}
    overrides = [f"--set={key}={value}" for key, value in values.items()]
    assert main(["probe", "--device", "cpu", "--out", str(tmp_path / "probe"), *overrides]) == 2
    assert "has no class token; set pool to avg or map" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("kind", ["hierarchy", "attention", "masks", "distance"])
@pytest.mark.parametrize("form", ["dinov3", "dinov2_registers", "siglip"])
def test_pictures_are_drawn_of_every_form(form, kind, pictures, tmp_path):
    file = write_form(form, tmp_path / "encoder.safetensors")
    arguments = [str(pictures / "bright" / "00.png"), "--checkpoint", str(file), "--out", str(tmp_path / "out")]
    assert main(["inspect", kind, *arguments, "--device", "cpu"]) in (0, None)
    with Image.open(tmp_path / "out" / f"{kind}.png") as picture:
        picture.load()
        assert min(picture.size) > 100
