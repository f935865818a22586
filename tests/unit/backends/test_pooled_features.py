"""The features of a learner in training are those of the encoder that its checkpoint holds, and change no training."""

import numpy as np
import pytest
import torch
from tiny_learners import CPU, OPTIM, assert_same_state, pretraining, pretraining_config, take_step, take_steps
from vit_forms import FORMS, write_form

from ehm import backends
from ehm.backends.torch.learners.pretraining import TorchLearner
from ehm.config import ModelSource, TrainConfig
from ehm.models.pretraining import adopt_encoder
from ehm.storage.arrays import LearnerState, split_average
from ehm.storage.checkpoint import save_checkpoint

FEATURE = {"objective": "feature", "optim": {"ema_decay": 0.5}}
SETTINGS = {
    "mae": ("mae", {"optim": {"ema_decay": 0.5}}),
    "relative": ("simmim", {"optim": {"ema_decay": 0.5}}),
    "swin": ("swin", {"optim": {"ema_decay": 0.5}}),
    "dropping": ("simmim", {"model": {"drop_path": 0.5}, "optim": {"ema_decay": 0.5}}),
    "feature": ("mae", FEATURE),
    "checkpointing": ("mae", {"run": {"grad_checkpointing": True}}),
    "frozen": ("mae", {"model": {"freeze": 2}}),
}


def draw_images(side, count=5):
    return np.random.default_rng(1).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def features_of(arrays, config, folder, images):
    """Features by the encoder of a checkpoint that holds ``arrays``."""
    meta = {"kind": "pretrain", "step": 1, "config": config.model_dump(mode="json")}
    path = save_checkpoint(folder, LearnerState(arrays, {}), meta)
    return backends.get("cpu").create_encoder(ModelSource(init=str(path))).compute_features(images)


def assert_features_are_the_encoders(learner, config, tmp_path, images, **close):
    state = learner.state()
    expected = features_of(state.model, config, tmp_path / "online", images)
    np.testing.assert_allclose(learner.compute_features(images), expected, **close)
    _, average = split_average(state.optimizer)
    if average:
        expected = features_of(average, config, tmp_path / "average", images)
        np.testing.assert_allclose(learner.compute_features(images, average=True), expected, **close)


@pytest.mark.parametrize("name", SETTINGS)
def test_features_are_those_of_the_checkpoints_encoder(name, tmp_path):
    kind, sections = SETTINGS[name]
    learner = take_steps(pretraining(kind, **sections), 2)
    config = pretraining_config(kind, **sections)
    assert_features_are_the_encoders(learner, config, tmp_path, draw_images(32), atol=2e-5)


@pytest.mark.parametrize("form", ["dinov2_registers", "dinov3", "siglip", "eva02"])
def test_features_of_other_forms_are_too(form, tmp_path):
    init = str(write_form(form, tmp_path / "weights.safetensors"))
    weights = backends.get("cpu").open_weights(ModelSource(init=init))
    settings = {
        "image_size": FORMS[form][1],
        "model": {"init": init, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2},
        "mask": {"blocks": 1},
        "optim": OPTIM,
    }
    config, _ = adopt_encoder(TrainConfig.model_validate(settings), weights)
    learner = TorchLearner(config, CPU, weights=weights)
    assert_features_are_the_encoders(learner, config, tmp_path, draw_images(FORMS[form][1], 2), atol=1e-4, rtol=1e-4)


def test_an_update_is_part_of_the_features(tmp_path):
    start = take_steps(pretraining("mae"), 1)
    meta = {"kind": "pretrain", "step": 1, "config": pretraining_config("mae").model_dump(mode="json")}
    init = str(save_checkpoint(tmp_path / "start", start.state(), meta))
    sections = {"model": {"init": init}, "lora": {"rank": 2, "dropout": 0.5}}
    learner = take_steps(pretraining("mae", **sections), 2)
    assert not np.allclose(
        learner.compute_features(draw_images(32)), start.compute_features(draw_images(32)), atol=1e-3
    )
    assert_features_are_the_encoders(learner, pretraining_config("mae"), tmp_path, draw_images(32), atol=2e-5)


def test_features_in_bfloat16_are_near(tmp_path):
    learner = take_steps(pretraining("mae", optim={"dtype": "bfloat16"}), 1)
    found = learner.compute_features(draw_images(32))
    assert found.dtype == np.float32
    expected = features_of(learner.state().model, pretraining_config("mae"), tmp_path, draw_images(32))
    assert 0 < np.abs(found - expected).max() < 0.05


@pytest.mark.parametrize("name", ["mae", "swin", "dropping", "feature"])
def test_they_change_no_training(name):
    kind, sections = SETTINGS[name]
    alone = pretraining(kind, **sections)
    watched = pretraining(kind, **sections)
    for _ in range(3):
        take_step(alone)
        before = torch.get_rng_state()
        watched.compute_features(draw_images(32))
        watched.compute_features(draw_images(32, 3), average=True)
        assert torch.equal(before, torch.get_rng_state())
        take_step(watched)
        assert watched.model.training
    assert_same_state(alone.state(), watched.state())
