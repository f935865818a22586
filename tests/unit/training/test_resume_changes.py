"""A resumed run goes on with the images and the settings that it began with, or says what has changed."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_learner import FakeBackend
from PIL import Image

from ehm import backends
from ehm.backends.base import ALONE, DeviceInfo
from ehm.config import TokenizerConfig
from ehm.data.sources.identity import SourceIdentity
from ehm.errors import ConfigError
from ehm.storage.arrays import LearnerState
from ehm.storage.checkpoint import open_checkpoint
from ehm.training.pretrain import train
from ehm.training.resume import check_resumed_data
from ehm.training.tokenizer import train_tokenizer
from ehm.training.training_data import TrainingData

SETTINGS = ["encoder=vit_tiny", "image_size=32", "patch_size=8", "optim.batch_size=4", "optim.epochs=4",
            "optim.warmup_epochs=1", "optim.base_lr=0.64", "data.workers=0", "run.trackers=[]"]  # fmt: skip


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(backends, "get", lambda device, deterministic=False: FakeBackend())


@pytest.fixture
def stopped(images, tmp_path):
    """A run of 12 steps that was stopped after 5."""
    train(overrides=[*SETTINGS, f"data.source={images}", "run.max_steps=5"], out=tmp_path / "run")
    return tmp_path / "run"


def resume(run, *overrides, **options):
    return train(overrides=["run.max_steps=null", *overrides], out=run, resume=True, **options)


def weight(run):
    return open_checkpoint(run).model["weight"]


def test_other_images_stop_it_with_both_numbers(stopped, images):
    removed = [(file, file.read_bytes()) for file in sorted(images.iterdir())[:2]]
    for file, _ in removed:
        file.unlink()
    with pytest.raises(ConfigError, match="there were 12 images to train on and there are 10; bring back what was"):
        resume(stopped)
    assert not (stopped / "encoder.safetensors").exists()
    for file, data in removed:
        file.write_bytes(data)
    shutil.copy(images / "00.png", images / "more.png")
    with pytest.raises(ConfigError, match="there were 12 images to train on and there are 13"):
        resume(stopped)
    (images / "00.png").unlink()  # as many as before
    with pytest.raises(ConfigError, match="12 images to train on as before, but their names"):
        resume(stopped)
    (images / "more.png").rename(images / "00.png")
    assert resume(stopped).steps == 12


def test_other_images_of_the_same_names_and_sizes_stop_it(stopped, images):
    changed = bytearray((images / "00.png").read_bytes())
    changed[-1] ^= 1
    (images / "00.png").write_bytes(changed)
    with pytest.raises(ConfigError, match="12 images to train on of the same names and sizes as before, but they are"):
        resume(stopped)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (["b", "a"], "the classes were in the order a, b and are in the order b, a"),
        (["a", "c"], "of the 2 classes b is now c"),
        (["a"], r"there were 2 classes \(a, b\) and there are 1 \(a\)"),
    ],
)
def test_other_classes_stop_it_by_name(now, said):
    start = SimpleNamespace(folder=Path("step-00000005"), metadata={"classes": ["a", "b"]})
    with pytest.raises(ConfigError, match=said):
        check_resumed_data(start, None, now, "photographs")
    assert check_resumed_data(start, None, ["a", "b"], "photographs") is None


def test_other_labels_of_the_same_images_stop_it():
    before = SourceIdentity(12, "names", "bytes", "labels")
    now = replace(before, labels="others")
    stored = TrainingData(before, before).to_json()
    start = SimpleNamespace(folder=Path("step-00000005"), metadata={"classes": ["a"], "data": stored}, images={})
    with pytest.raises(ConfigError, match="the labels of its 12 images to train on have changed"):
        check_resumed_data(start, TrainingData(now, now), ["a"], "photographs")
    # pretraining takes no labels
    assert check_resumed_data(start, TrainingData(now, now), None, "photographs").train == before


def test_the_same_images_elsewhere_end_in_the_same_weights(stopped, images, tmp_path, capsys):
    whole = train(overrides=[*SETTINGS, f"data.source={images}"], out=tmp_path / "whole")
    images.rename(tmp_path / "moved")
    os.symlink(tmp_path / "moved", tmp_path / "link")
    capsys.readouterr()
    resume(stopped, f"data.source={tmp_path / 'link'}", "data.workers=1", "run.log_every=3")
    np.testing.assert_array_equal(weight(stopped), weight(whole.out))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "changed since then, without harm" in line]
    assert f"data.source was {images} and is {tmp_path / 'link'}" in line
    for change in ("data.workers was 0 and is 1", "run.log_every was 10 and is 3", "run.max_steps was 5 and is null"):
        assert change in line


def test_an_edited_configuration_is_compared_with_the_checkpoint(stopped):
    file = stopped / "config.yaml"
    text = file.read_text()
    file.write_text(text.replace("masking: evolved", "masking: random").replace("seed: 0", "seed: 7"))
    with pytest.raises(ConfigError, match=r"with other settings: masking was evolved and is random; run\.seed was 0 "):
        resume(stopped)
    file.write_text(text.replace("epochs: 4", "epochs: 8"))
    with pytest.raises(ConfigError, match=r"optim\.epochs was 4 and is 8; set them as they were, or start a new run"):
        resume(stopped)


def test_another_device_and_version_are_said(stopped, monkeypatch, capsys):
    class Moved(FakeBackend):
        def describe_device(self):
            return DeviceInfo("other", "NumPy", 1, None, ("float64",))

    state = next((stopped / "checkpoints").iterdir()) / "state.json"
    meta = json.loads(state.read_text())
    meta["versions"]["numpy"] = "1.0"
    state.write_text(json.dumps(meta))
    monkeypatch.setattr(backends, "get", lambda device, deterministic=False: Moved())
    resume(stopped)
    said = capsys.readouterr().out
    assert "device was fake and is other" in said
    assert f"version of numpy was 1.0 and is {np.__version__}" in said


def test_a_checkpoint_of_an_earlier_version_goes_on_with_a_line(stopped, images, capsys):
    state = next((stopped / "checkpoints").iterdir()) / "state.json"
    meta = json.loads(state.read_text())
    del meta["data"], meta["device"]
    state.write_text(json.dumps(meta))
    (images / "11.png").unlink()
    assert resume(stopped).steps == 8
    assert "does not say which images it was trained on" in capsys.readouterr().out
    assert open_checkpoint(stopped).metadata["data"]["train"]["images"] == 11


class FakeTokenizer:
    """Reconstructs every image as it is."""

    def __init__(self):
        self.steps = 0

    def train_step(self, images, temperature, lr, weight_decay):
        self.steps += 1
        return {"loss": np.float64(1)}

    def reconstruct_images(self, images):
        return images.astype(np.float32) / 255, np.zeros((len(images), 2, 2), np.int64)

    def state(self):
        return LearnerState({"weight": np.zeros(1)}, {"step": np.array(self.steps)})

    def load(self, state):
        self.steps = int(state.optimizer["step"])


def test_a_tokenizer_is_resumed_on_its_own_images_only(images, tmp_path, monkeypatch):
    backend = FakeBackend()
    backend.processes = ALONE
    backend.create_tokenizer = lambda config: FakeTokenizer()
    monkeypatch.setattr(backends, "get", lambda device, deterministic=False: backend)
    sections = {"data": {"source": str(images), "workers": 0}, "run": {"trackers": [], "max_steps": 2}}
    optim = {"epochs": 2, "batch_size": 4, "warmup_epochs": 0}
    config = TokenizerConfig(image_size=32, vocabulary=8, width=8, optim=optim, **sections)
    train_tokenizer(config, out=tmp_path / "run")
    Image.new("RGB", (40, 36)).save(images / "new.png")
    with pytest.raises(ConfigError, match="there were 12 images to train on and there are 13"):
        train_tokenizer(out=tmp_path / "run", overrides=["run.max_steps=null"], resume=True)
    (images / "new.png").unlink()
    train_tokenizer(out=tmp_path / "run", overrides=["run.max_steps=null"], resume=True)
    assert open_checkpoint(tmp_path / "run").metadata["step"] == 6
