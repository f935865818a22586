"""Runs that predict a teacher's features: stopped and resumed, from a frozen teacher and from a moving average."""

import json
import shutil

import numpy as np
import pytest
from tiny import RUN, TINY

import ehm
from ehm.errors import CheckpointError
from ehm.storage.checkpoint import open_checkpoint

FEATURE = {**TINY, **RUN, "objective": "feature", "optim.ema_decay": "[0.9, 1]", "optim.base_lr": 0.02}


def train(out, values, resume=False, **more):
    overrides = [f"{key}={value}" for key, value in {**values, **more}.items()]
    return ehm.train(device="cpu", overrides=overrides, out=out, resume=resume)


@pytest.fixture
def frozen(images, tmp_path):
    """Settings of a run whose teacher is a run of MAE in the folder ``first``."""
    train(tmp_path / "first", {**TINY, **RUN, "data.source": images})
    return {
        **FEATURE,
        "data.source": images,
        "model.teacher": "start",
        "model.init": tmp_path / "first",
        "optim.ema_decay": "null",
    }


@pytest.mark.parametrize("teacher", ["start", "ema"])
def test_a_resumed_run_ends_bit_for_bit_like_one_that_never_stopped(frozen, images, tmp_path, capsys, teacher):
    values = frozen if teacher == "start" else {**FEATURE, "data.source": images}
    train(tmp_path / "whole", values)
    train(tmp_path / "stopped", values, **{"run.max_steps": 3})
    capsys.readouterr()
    train(tmp_path / "stopped", {"run.max_steps": "null"}, resume=True)
    said = " ".join(capsys.readouterr().out.split())
    assert "begins with" not in said
    assert ("predicts the features of" in said) == (teacher == "start")
    whole, stopped = open_checkpoint(tmp_path / "whole"), open_checkpoint(tmp_path / "stopped")
    assert whole.metadata["step"] == stopped.metadata["step"] == 6
    for arrays, others in (
        (whole.state.model, stopped.state.model),
        (whole.state.optimizer, stopped.state.optimizer),
    ):
        assert arrays.keys() == others.keys()
        assert any(name.startswith("ema/") for name in whole.state.optimizer) == (teacher == "ema")
        for name, value in arrays.items():
            np.testing.assert_array_equal(others[name], value, err_msg=name)
    lines = [json.loads(line) for line in (tmp_path / "stopped/metrics.jsonl").read_text().splitlines()]
    assert all(line["target_spread"] > 0.05 for line in lines)


def test_a_resumed_run_needs_its_teacher_wherever_it_lies_and_no_other(frozen, tmp_path):
    run = tmp_path / "run"
    train(run, frozen, **{"run.max_steps": 2})
    assert open_checkpoint(run).metadata["teacher"] == open_checkpoint(tmp_path / "first").model_sha256
    (tmp_path / "first").rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"model.init .*first: no such file or folder"):
        train(run, {"run.max_steps": 3}, resume=True)
    train(run, {"run.max_steps": 3, "model.init": tmp_path / "moved"}, resume=True)

    other = {**TINY, **RUN, "data.source": frozen["data.source"], "run.seed": 1}
    train(tmp_path / "first", other)
    with pytest.raises(CheckpointError, match=r"model.init .*first: is not the teacher that this run began with"):
        train(run, {"run.max_steps": 4, "model.init": tmp_path / "first"}, resume=True)


def test_the_encoder_of_such_a_run_serves_as_any_other(frozen, tmp_path):
    """It goes on to fine-tuning and as the teacher of another run, and the decoder stays behind."""
    run = tmp_path / "run"
    result = train(run, frozen)
    assert result.encoder is not None
    shutil.rmtree(tmp_path / "first")
    values = {**frozen, "model.init": result.encoder, "model.loss": "cosine"}
    assert np.isfinite(train(tmp_path / "second", values).loss)
