"""The loop, driven with a learner of plain NumPy: no framework takes part."""

import json
import math

import numpy as np
import pytest
from fake_learner import FakeBackend
from safetensors.numpy import load_file

from ehm import backends
from ehm.errors import CheckpointError, ConfigError, TrainingError
from ehm.storage.checkpoint import newest_checkpoint, open_checkpoint
from ehm.training import pretrain
from ehm.training.pretrain import train

TINY = [
    "encoder=vit_tiny",
    "image_size=32",
    "patch_size=8",
    "optim.batch_size=4",
    "optim.epochs=4",
    "optim.warmup_epochs=1",
    "optim.base_lr=0.64",
    "data.workers=0",
    "run.log_every=2",
    "run.trackers=[]",
    "watch.pictures=0",
]


@pytest.fixture
def fake(monkeypatch):
    backend = FakeBackend()
    monkeypatch.setattr(backends, "get", lambda device, deterministic=False: backend)
    return backend


def run(images, out, *overrides, **options):
    return train(overrides=[*TINY, f"data.source={images}", *overrides], out=out, **options)


def test_schedule_masks_and_results(fake, images, tmp_path):
    result = run(images, tmp_path / "out")
    calls = [call for call in fake.learners[0].calls if call[0] == "train_step"]
    assert len(calls) == result.steps == 4 * 3
    peak, rates = 0.64 * 4 / 256, [call[2] for call in calls]
    expected = [peak * s / 3 if s < 3 else peak * (1 + math.cos(math.pi * (s - 3) / 9)) / 2 for s in range(12)]
    np.testing.assert_allclose(rates, expected)
    assert {call[3] for call in calls} == {0.05}
    assert all(call[1].shape == (4, 16) and np.all(call[1].sum(1) == 12) for call in calls)

    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 4, 6, 8, 9, 10, 12]
    assert lines[0]["loss"] == pytest.approx((1 + 1 / 2) / 2)
    names = {"epoch", "lr", "images_per_second", "mask_level", "tree_height", "parts", "largest_part"}
    assert names <= lines[0].keys()
    assert lines[-1]["mask_level"] > lines[0]["mask_level"]
    assert all(0 <= line["data_wait"] + line["masks_wait"] <= 1 for line in lines)
    assert all(line["device_memory"] == 1000 for line in lines)
    assert "images_per_second_here" not in lines[0]  # it is that of all processes

    kept = sorted(path.name for path in (tmp_path / "out/checkpoints").iterdir())
    assert kept == ["step-00000009", "step-00000012"]
    assert load_file(result.encoder).keys() == {"weight"}


def test_without_a_configuration_it_says_that_it_takes_an_example(fake, images, tmp_path, capsys):
    run(images, tmp_path / "out", "run.max_steps=1")
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "No --config: taking the shipped elpv/pretrain, a small example; ehm configs lists others"


@pytest.mark.parametrize(
    ("trackers", "installed", "expected"),
    [
        ("[tensorboard]", True, " (tensorboard --logdir {out})"),
        ("[tensorboard]", False, " (tensorboard --logdir {out}; pip install tensorboard installs it)"),
        ("[]", True, ""),
    ],
)
def test_curves_are_shown_by_a_program_that_is_installed(
    fake, images, tmp_path, monkeypatch, capsys, trackers, installed, expected
):
    monkeypatch.setattr(pretrain, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(pretrain.shutil, "which", lambda name: None)
    out = tmp_path / "out"
    run(images, out, f"run.trackers={trackers}", "optim.epochs=1", "optim.warmup_epochs=0", "masking=random")
    (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Curves: ")]
    assert said == f"Curves: {out / 'metrics.jsonl'}{expected.format(out=out)}"


@pytest.mark.parametrize("masking", ["random", "grid"])
def test_static_masks_ask_for_no_similarity(fake, images, tmp_path, masking):
    run(images, tmp_path / "out", f"masking={masking}")
    assert {call[0] for call in fake.learners[0].calls} == {"train_step", "features"}


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_resumed_run_ends_like_one_that_never_stopped(fake, images, tmp_path, stop):
    whole = run(images, tmp_path / "whole", "run.checkpoint_every=0.3")
    run(images, tmp_path / "parts", "run.checkpoint_every=0.3", f"run.max_steps={stop}")
    parts = run(images, tmp_path / "parts", "run.checkpoint_every=0.3", "run.max_steps=null", resume=True)
    first, second = open_checkpoint(whole.checkpoint).state, open_checkpoint(parts.checkpoint).state
    np.testing.assert_array_equal(first.model["weight"], second.model["weight"])
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts/metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_loss_that_is_not_finite_names_step_and_last_good_checkpoint(fake, images, tmp_path):
    fake.fail_at = 8
    with pytest.raises(TrainingError, match=r"nan at step 8; the last good checkpoint is .*step-00000006"):
        run(images, tmp_path / "out")
    assert newest_checkpoint(tmp_path / "out/checkpoints").name == "step-00000006"


def test_a_folder_with_a_run_is_not_overwritten(fake, images, tmp_path):
    run(images, tmp_path / "out")
    with pytest.raises(ConfigError, match="--resume continues it"):
        run(images, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"mask\.ratio was 0\.75 and is 0\.5"):
        run(images, tmp_path / "out", "mask.ratio=0.5", resume=True)
    with pytest.raises(CheckpointError, match="no run in"):
        train(out=tmp_path / "nothing", resume=True)


def test_resume_without_a_configuration_takes_the_stored_one(fake, images, tmp_path):
    run(images, tmp_path / "out", "run.max_steps=5")
    result = train(out=tmp_path / "out", overrides=["run.max_steps=null"], resume=True)
    assert result.steps == 12
