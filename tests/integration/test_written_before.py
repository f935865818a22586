"""Files that an earlier version wrote are still read, resumed, measured, exported and run, with the same results."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

import ehm
from ehm.config import TokenizerConfig, TrainConfig, load_config
from ehm.storage.checkpoint import open_checkpoint
from ehm.tasks.registry import TASKS

WRITTEN = Path(__file__).parents[1] / "data" / "written_before"
EXPECTED = json.loads((WRITTEN / "expected.json").read_text())
PICTURE = "data/images/red/0.png"
CONFIGS = {
    "pretrain": TrainConfig,
    "tokenizer": TokenizerConfig,
    **{name: entry.config for name, entry in TASKS.items() if name in EXPECTED["metrics"]},  # what there was by then
}
GO_ON = ("run.max_steps=null",)
FIRST = WRITTEN.parent / "written_by_0.1.0"
"""Files of the first version, whose bundles have another format."""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A copy of the files, as the current folder: their configurations name the images from there."""
    folder = tmp_path / "written"
    shutil.copytree(WRITTEN, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("source", EXPECTED["features"])
def test_encoders_give_the_features_that_they_gave(source, written):
    heads = ["model.heads=2"] if source.endswith(".safetensors") else []
    ehm.export(source, head="features", overrides=heads, out="exported")
    (prediction,) = ehm.predict("exported", PICTURE, device="cpu")
    np.testing.assert_allclose(prediction.features, EXPECTED["features"][source], rtol=0, atol=1e-5)


@pytest.mark.parametrize("task", EXPECTED["metrics"])
def test_models_measure_as_they_did(task, written):
    if task == "detection":
        pytest.importorskip("faster_coco_eval", reason="comes with the extra tasks")
    ehm.evaluate(f"trained/{task}", device="cpu", out="measured")
    found = json.loads(Path("measured", "metrics.json").read_text())
    assert {key: found[key] for key in EXPECTED["metrics"][task]} == EXPECTED["metrics"][task]


def test_a_bundle_gives_the_probabilities_that_it_gave(written):
    (prediction,) = ehm.predict("bundle", PICTURE, device="cpu")
    found = prediction.as_dict()["classes"]
    assert [each["label"] for each in found] == [each["label"] for each in EXPECTED["classes"]]
    probabilities = [each["probability"] for each in EXPECTED["classes"]]
    np.testing.assert_allclose([each["probability"] for each in found], probabilities, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_say_what_they_said(name, written):
    path = Path("trained", name, "config.yaml")
    config = load_config(CONFIGS[name], path)
    found = config.model_dump(mode="json")
    values = yaml.safe_load(path.read_text())
    assert values["run"].pop("tensorboard") is False
    values["run"]["trackers"] = []  # its name since there are others
    for key, value in values.items():
        given = found[key]
        assert given == value or {inner: given[inner] for inner in value} == value


def test_pretraining_goes_on(written):
    result = ehm.train(device="cpu", overrides=GO_ON, out="trained/pretrain", resume=True)
    steps = [json.loads(line)["step"] for line in Path("trained/pretrain/metrics.jsonl").read_text().splitlines()]
    assert steps == [4, 5, 6, 7, 8]
    assert result.encoder.is_file()


def test_a_tokenizer_goes_on(written):
    ehm.train_tokenizer(device="cpu", overrides=GO_ON, out="trained/tokenizer", resume=True)
    meta = open_checkpoint("trained/tokenizer").metadata
    assert meta["step"] == 8


@pytest.mark.parametrize(("task", "steps"), [("classification", 4), ("retrieval", 4)])
def test_fine_tuning_goes_on(task, steps, written):
    ehm.finetune(device="cpu", overrides=GO_ON, out=f"trained/{task}", resume=True)
    meta = open_checkpoint(f"trained/{task}").metadata
    assert meta["step"] == steps


@pytest.fixture
def written_first(tmp_path, monkeypatch):
    """A copy of the files of 0.1.0, as the current folder."""
    folder = tmp_path / "first"
    shutil.copytree(FIRST, folder)
    monkeypatch.chdir(folder)
    return folder


def test_the_first_version_had_the_formats_that_this_tests():
    assert json.loads((FIRST / "bundle/manifest.json").read_text())["format"] == 1
    state = json.loads(next(FIRST.glob("finetune/checkpoints/*/state.json")).read_text())
    assert (state["format"], state["versions"]["ehm"]) == (1, "0.1.0")


def test_a_bundle_and_a_classifier_of_the_first_version_give_what_they_gave(written_first):
    expected = dict(json.loads(Path("expected.json").read_text())["classes"])
    ehm.export("finetune", head="classifier", out="exported")
    for bundle in ("bundle", "exported"):
        (prediction,) = ehm.predict(bundle, "data/red/0.png", device="cpu")
        found = {each["label"]: each["probability"] for each in prediction.as_dict()["classes"]}
        assert found == pytest.approx(expected, abs=1e-5), bundle


def test_pretraining_of_the_first_version_goes_on(written_first):
    ehm.train(device="cpu", overrides=GO_ON, out="pretrain", resume=True)
    steps = [json.loads(line)["step"] for line in Path("pretrain/metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 8
    assert Path("pretrain/encoder.safetensors").is_file()
