"""The moving average of a task's weights, against timm's, and runs that stop early."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from timm.utils import ModelEmaV3

from ehm.backends.torch.learners.classification import TorchClassifier
from ehm.config import FinetuneConfig
from ehm.report.overview import describe_status
from ehm.report.record import read_record
from ehm.storage.arrays import LearnerState
from ehm.storage.checkpoint import newest_checkpoint, open_checkpoint
from ehm.tasks.evaluate import evaluate
from ehm.tasks.finetune import finetune

CPU = torch.device("cpu")
DECAYS = (0.5, 0.9, 0.99)


def make_config(source="elpv", **sections):
    values = {
        "model": {
            "encoder": "vit_tiny",
            "width": 32,
            "depth": 2,
            "heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "drop_path": 0.1,
        },
        "data": {"source": str(source), "workers": 0},
        "augment": {"rand_augment": None, "mixup": 0, "cutmix": 0, "random_erasing": 0},
        "optim": {"epochs": 4, "batch_size": 8, "base_lr": 0.05, "warmup_epochs": 0, "dtype": "float32"},
        "run": {"trackers": []},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    return FinetuneConfig.model_validate(values)


@pytest.mark.parametrize("frozen", [False, True])
def test_it_is_timms_average_batch_norm_included(frozen):
    learner = TorchClassifier(make_config(frozen=frozen, optim={"ema_decay": [0.5, 0.99]}), 3, CPU)
    expected = ModelEmaV3(learner.model)
    rng = np.random.default_rng(0)
    for decay in DECAYS:
        images = rng.integers(0, 256, (8, 32, 32, 3), np.uint8)
        learner.train_step(images, np.eye(3, dtype=np.float32)[rng.integers(0, 3, 8)], 0.05, 0)
        learner.update_average(decay)
        expected.decay = decay
        expected.update(learner.model)
    state = learner.state()
    for name, value in expected.module.state_dict().items():
        assert np.array_equal(state.model[name], value.numpy()), name
    # what is measured is the average, and not the weights in training
    with torch.no_grad():
        logits = expected.module.eval()(learner._pixels(images)).numpy()
    assert np.array_equal(learner.compute_logits(images), logits)
    assert not np.array_equal(
        state.model["head.weight" if not frozen else "head.1.weight"],
        learner.model.state_dict()["head.weight" if not frozen else "head.1.weight"].numpy(),
    )


def test_a_plain_learner_opens_the_average_alone():
    averaged = TorchClassifier(make_config(optim={"ema_decay": 0.5}), 3, CPU)
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    averaged.train_step(images, np.eye(3, dtype=np.float32)[np.arange(8) % 3], 0.05, 0)
    averaged.update_average(0.5)
    plain = TorchClassifier(make_config(), 3, CPU)
    plain.load(LearnerState(averaged.state().model, {}))
    assert np.array_equal(plain.compute_logits(images), averaged.compute_logits(images))


def test_a_stopped_run_ends_as_one_that_was_not(stripes, tmp_path):
    config = make_config(stripes, optim={"ema_decay": 0.9})
    complete = finetune(config, device="cpu", out=tmp_path / "complete")
    finetune(config, device="cpu", overrides=["run.max_steps=7"], out=tmp_path / "stopped")
    finetune(device="cpu", overrides=["run.max_steps=null"], out=tmp_path / "stopped", resume=True)
    for file in ("model.safetensors", "optimizer.safetensors"):
        found = [newest_checkpoint(tmp_path / name / "checkpoints") / file for name in ("complete", "stopped")]
        arrays = [load_file(path) for path in found]
        assert arrays[0].keys() == arrays[1].keys()
        assert all(np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[0]), file
    assert any(name.startswith("trained/") for name in arrays[0])
    # evaluation opens the average from the checkpoint
    assert evaluate(complete.out, device="cpu").confusion == complete.report.confusion


def test_a_run_stops_when_nothing_improves_and_is_then_complete(stripes, tmp_path, capsys):
    # at a learning rate of next to nothing every measurement is the same
    config = make_config(stripes, patience=2, optim={"base_lr": 1e-9, "min_lr": 0, "epochs": 6})
    out = tmp_path / "run"
    finetune(config, device="cpu", out=out)
    newest = newest_checkpoint(out / "checkpoints")
    metadata = open_checkpoint(newest).metadata
    measured = [line for line in (out / "metrics.jsonl").read_text().splitlines() if "top1" in line]
    assert len(measured) == 3  # the best one, and two more
    assert metadata["measurements_without_gain"] == 2
    assert "Stopped early after" in capsys.readouterr().out
    assert describe_status(read_record(out))[1].startswith("Stopped early after step")
    finetune(device="cpu", out=out, resume=True)
    assert newest_checkpoint(out / "checkpoints") == newest
    assert json.loads((out / "metrics.json").read_text())["checkpoint"].endswith(newest.name)
    # with more patience it goes on
    finetune(device="cpu", overrides=["patience=3"], out=out, resume=True)
    assert open_checkpoint(newest_checkpoint(out / "checkpoints")).metadata["measurements_without_gain"] == 3
