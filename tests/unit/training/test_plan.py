"""Settings that cannot mean what they say are refused once the number of images is known."""

import json

import pytest
from fake_learner import FakeBackend

from ehm import backends
from ehm.config import OptimConfig, RunConfig
from ehm.errors import ConfigError
from ehm.training.plan import check_plan, plan_run
from ehm.training.pretrain import train

SHORT = {"epochs": 4, "batch_size": 8, "warmup_epochs": 0, "base_lr": 0.1}


def check(images=16, resumed=False, views=1, run=None, **optim):
    optim = OptimConfig(**{**SHORT, **optim})
    run = RunConfig(**(run or {}))
    plan = plan_run(optim, run, max(1, images * views // optim.batch_size))
    return check_plan(plan, optim, run, images, views=views, measures=True, resumed=resumed)


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        ({"steps": 20, "warmup_epochs": 40}, "optim.warmup_epochs 40: the warm-up takes 80 steps, and the run has 20 "),
        ({"warmup_steps": 9}, r"optim.warmup_steps 9: the warm-up takes 9 steps, and the run has 8 \(2 in an epoch\)"),
        ({"batch_size": 17}, "batch_size 17: there are only 16 images to fill it.* set optim.batch_size=16 or less"),
        ({"min_lr": 0.01}, r"optim.min_lr 0.01: is above the learning rate 3.1.e-03 \(optim.base_lr 0.1 \* 8 / 256\)"),
        (
            {"schedule": "step", "warmup_steps": 4, "milestones": [0.25, 0.75]},
            "optim.milestones: the rate falls at step 2, within the warm-up of 4 steps",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_and_a_resumed_run_is_told(optim, message):
    with pytest.raises(ConfigError, match=message):
        check(**optim)
    assert len(check(**optim, resumed=True)) == 1


def test_what_can_be_meant_goes_on():
    assert check() == []
    assert check(warmup_steps=8) == check(batch_size=16) == check(schedule="step", milestones=[0.25]) == []
    assert check(batch_size=32, views=2) == []
    with pytest.raises(ConfigError, match=r"only 16 images with 2 masks each to fill it.* optim.batch_size=32 or less"):
        check(batch_size=34, views=2)


def test_what_is_hardly_meant_is_said():
    (rare,) = check(run={"checkpoint_every": 5})
    assert rare.startswith("run.checkpoint_every 5: is more than the run's 8 steps")
    (rare,) = check(run={"measure_every": 4.5})
    assert rare.startswith("run.measure_every 4.5: is more than the run's 8 steps")
    (early,) = check(warmup_epochs=2, run={"max_steps": 3})
    assert early == "run.max_steps 3: the run ends within the warm-up of 4 steps"


@pytest.mark.parametrize(
    ("optim", "run", "words"),
    [
        ({}, {}, "4 epochs of 2 steps"),
        ({}, {"max_steps": 8}, "4 epochs of 2 steps"),
        ({}, {"max_steps": 3}, "4 epochs of 2 steps, of which run.max_steps takes the first 3 of 8 steps"),
        ({"steps": 20}, {}, "20 steps, 10 epochs of 2"),
    ],
)
def test_the_length_is_that_of_the_steps_that_will_be_run(optim, run, words):
    optim = OptimConfig(**{**SHORT, **optim})
    assert plan_run(optim, RunConfig(**run), 2).describe(optim) == words


def test_a_run_is_refused_before_anything_is_written(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(backends, "get", lambda device, deterministic=False: FakeBackend())
    settings = ["encoder=vit_tiny", "image_size=32", "patch_size=8", "data.workers=0", "run.trackers=[]"]
    settings += [f"data.source={images}", "optim.batch_size=4", "optim.epochs=300", "optim.steps=5"]
    for wrong, message in (
        (["optim.warmup_epochs=40"], "the warm-up takes 120 steps, and the run has 5"),
        (["optim.batch_size=13", "optim.warmup_epochs=0"], "there are only 12 images to fill it"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(overrides=[*settings, *wrong], out=tmp_path / "out")
        assert not (tmp_path / "out").exists()
    train(overrides=[*settings, "optim.warmup_epochs=1", "run.log_every=1"], out=tmp_path / "out")
    assert "12 images, 5 steps, 1.67 epochs of 3, batch 4" in capsys.readouterr().out
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5]
