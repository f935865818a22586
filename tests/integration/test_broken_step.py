"""A run whose loss is not finite keeps the step, and ``ehm train --replay`` takes it again: real explosions."""

import json
import math
import shutil

import numpy as np
import pytest
from full_disk import full_disk
from tiny import RUN, TINY

import ehm
from ehm.cli import main
from ehm.errors import CheckpointError, ConfigError, NotFiniteError
from ehm.storage.broken_step import read_broken_step
from ehm.storage.checkpoint import open_checkpoint, save_checkpoint

EXPLODING = {**TINY, **RUN, "optim.base_lr": 1e30, "optim.warmup_epochs": 0, "run.log_every": 10}
"""The first step is sound, and makes the weights so large that the loss of the second one is not finite."""


def train(images, out, settings=EXPLODING, **options):
    overrides = [f"{key}={value}" for key, value in {**settings, "data.source": images}.items()]
    return ehm.train(device="cpu", overrides=overrides, out=out, **options)


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def test_the_step_is_kept_as_it_was_and_replayed(images, tmp_path, capsys):
    with pytest.raises(NotFiniteError, match=r"(nan|inf) at step 2.*--replay .*broken/step-00000002`") as caught:
        train(images, tmp_path / "run")
    folder = tmp_path / "run/broken/step-00000002"
    assert caught.value.step == 2
    assert str(folder) in str(caught.value)
    kept = read_broken_step(folder)
    # a run that stops before the broken step has the same weights, moments and counters
    sound = train(images, tmp_path / "sound", {**EXPLODING, "run.max_steps": 1})
    assert_same(kept.before.model, open_checkpoint(sound.checkpoint).model)
    assert_same(kept.before.optimizer, open_checkpoint(sound.checkpoint).optimizer)
    assert kept.images.shape == (4, 32, 32, 3)
    assert kept.mask.shape == (4, 16)
    assert set(kept.mask.sum(axis=1)) == {12}
    assert kept.facts["rates"]["lr"] == pytest.approx(1e30 * 4 / 256 * 0.5 * (1 + math.cos(math.pi / 6)))

    capsys.readouterr()
    assert main(["train", "--device", "cpu", "--replay", str(folder)]) == 0
    said = capsys.readouterr().out
    loss = json.loads((folder / "step.json").read_text())["loss"]
    assert f"loss {loss} (in the run {loss})" in said
    assert "before the step all weights and moments were finite; the largest weight was" in said
    assert "first not finite: the output of module blocks.0." in said
    assert "anomaly detection stops at the gradient of" in said
    assert "the network has grown too large: a lower optim.base_lr" in said


def test_weights_that_were_broken_before_the_first_step_are_told(images, tmp_path, capsys):
    first = train(images, tmp_path / "first", {**TINY, **RUN})
    poisoned = open_checkpoint(first.checkpoint)
    arrays = poisoned.state
    arrays.model["blocks.1.mlp.fc1.weight"][3, 4] = np.nan
    metadata = {name: value for name, value in poisoned.metadata.items() if name != "sha256"}
    save_checkpoint(tmp_path / "poisoned", arrays, metadata)
    # with a page of reconstructions after every step, for which broken weights give no masks
    settings = {"model.init": tmp_path / "poisoned", "watch.pictures": 0.3, "run.log_every": 10}
    with pytest.raises(NotFiniteError, match="nan at step 1; no checkpoint was written yet"):
        train(images, tmp_path / "run", {**TINY, **RUN, **settings})
    capsys.readouterr()
    result = ehm.train(device="cpu", replay=tmp_path / "run")
    said = capsys.readouterr().out
    assert math.isnan(result.loss)
    assert "were not finite already: blocks.1.mlp.fc1.weight" in said
    assert "first not finite: the output of module blocks.1.mlp.fc1, from finite inputs" in said
    assert "look at the weights of model.init" in said


@pytest.fixture
def resumable(images, tmp_path):
    """A run that was stopped after 3 steps, and whose moments make the next update enormous."""
    settings = {**TINY, **RUN, "optim.ema_decay": 0.9, "run.log_every": 10}
    stopped = train(images, tmp_path / "run", {**settings, "run.max_steps": 3})
    opened = open_checkpoint(stopped.checkpoint)
    arrays = opened.state
    arrays.optimizer["decoder_pred.weight/exp_avg"][:] = 1e30
    metadata = {name: value for name, value in opened.metadata.items() if name != "sha256"}
    save_checkpoint(stopped.checkpoint.parent, arrays, metadata)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    return {**settings, "run.max_steps": "null"}


def test_after_a_resume_steps_since_the_checkpoint_are_taken_again(images, tmp_path, resumable, capsys):
    with pytest.raises(NotFiniteError, match=r"at step 5.*step-00000003"):
        train(images, tmp_path / "run", resumable, resume=True)
    assert "going back to step-00000003" in capsys.readouterr().out
    kept = read_broken_step(tmp_path / "run/broken/step-00000005")
    stopped = train(images, tmp_path / "copy", {**resumable, "run.max_steps": 4}, resume=True)
    assert kept.before.metadata["step"] == 4
    assert_same(kept.before.model, open_checkpoint(stopped.checkpoint).model)
    assert_same(kept.before.optimizer, open_checkpoint(stopped.checkpoint).optimizer)  # with the average
    capsys.readouterr()
    # predictions of 1e32 are finite, and neither their squares nor their gradient times weights as large are, on any
    # processor; where attention overflows depends on its kernel
    ehm.train(device="cpu", replay=tmp_path / "run/broken/step-00000005")
    said = capsys.readouterr().out
    assert "loss inf (in the run inf)" in said
    assert "first gradient that is not finite: that of decoder_norm" in said


def test_a_gradient_that_is_not_finite_ends_the_run_before_a_checkpoint_of_its_weights(images, tmp_path, monkeypatch):
    """A finite loss may have a gradient that is not: after its update nothing is finite."""
    from ehm.backends.torch.engine import step

    real = step.Training._measure_and_clip_gradients

    def overflow(self):
        next(iter(self._model.parameters())).grad.view(-1)[0] = math.inf
        return real(self)

    monkeypatch.setattr(step.Training, "_measure_and_clip_gradients", overflow)
    with pytest.raises(NotFiniteError, match=r"the gradient is inf at step 1, whose loss is \d"):
        train(images, tmp_path / "run", {**TINY, **RUN, "run.checkpoint_every": 0.3})
    assert not list((tmp_path / "run/checkpoints").glob("*"))


def test_a_full_disk_leaves_the_loss_as_the_error(images, tmp_path):
    with (
        full_disk(20_000),
        pytest.raises(NotFiniteError, match=r"at step 2.*could not be kept: .*step-00000002:"),
    ):
        train(images, tmp_path / "run")
    assert not list((tmp_path / "run/broken").glob("*"))


def test_two_processes_keep_the_whole_batch(images, tmp_path, pair):
    with pytest.raises(NotFiniteError):
        train(images, tmp_path / "one")
    settings = {**EXPLODING, "data.source": images}
    overrides = [f"--set={key}={value}" for key, value in settings.items()]
    said = pair.run("train", "--device", "cpu", "--out", str(tmp_path / "two"), *overrides, status=1)
    assert "--replay" in said
    one = read_broken_step(tmp_path / "one/broken/step-00000002")
    two = read_broken_step(tmp_path / "two/broken/step-00000002")
    assert two.facts["processes"] == 2
    np.testing.assert_array_equal(two.images, one.images)
    np.testing.assert_array_equal(two.indices, one.indices)
    assert two.mask.shape == one.mask.shape
    assert not math.isfinite(ehm.train(device="cpu", replay=tmp_path / "two").loss)


def test_a_replay_takes_no_other_folders(tmp_path):
    with pytest.raises(ConfigError, match="--replay: the folder says all there is"):
        ehm.train(replay=tmp_path, out=tmp_path)
    with pytest.raises(CheckpointError, match="no broken step there"):
        ehm.train(replay=tmp_path)
