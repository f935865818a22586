"""Whole channels are left out of what an encoder sees, as many of every image, and never of the targets."""

import numpy as np
import torch

from ehm.backends.torch.learners.pretraining import TorchLearner
from ehm.config import TrainConfig, load_config
from ehm.masking import draw_shown_channels

SETTINGS = (
    "encoder=vit_tiny", "model.width=24", "model.depth=1", "model.heads=2", "patch_size=8", "image_size=16",
    "mask.blocks=1", "model.decoder_width=16", "model.decoder_depth=1", "model.decoder_heads=2", "optim.batch_size=6",
    "optim.dtype=float32", "data.channels=4", "data.depth=16", "data.mean=[0.5, 0.5, 0.5, 0.5]",
    "data.std=[0.3, 0.3, 0.3, 0.3]",
)  # fmt: skip


def test_every_image_lacks_as_many_channels_and_others():
    shown = draw_shown_channels(2000, 5, 0.4, (1, 2))
    assert (shown.sum(axis=1) == 3).all()
    # each is left out as often as the others: of 2000 draws at 0.4, five deviations are 110
    assert np.abs((~shown).sum(axis=0) - 800).max() < 110
    np.testing.assert_array_equal(shown, draw_shown_channels(2000, 5, 0.4, (1, 2)))
    assert (shown != draw_shown_channels(2000, 5, 0.4, (1, 3))).any()


def test_the_loss_is_that_of_hidden_channels_against_whole_targets():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 65536, (6, 16, 16, 4), dtype=np.uint16)
    mask = np.array([[True, True, False, True]] * 6)
    config = load_config(TrainConfig, None, [*SETTINGS, "mask.channels=0.5"])
    learner = TorchLearner(config, torch.device("cpu"))
    shown = torch.from_numpy(draw_shown_channels(6, 4, 0.5, (config.run.seed, 0, 0)))[:, :, None, None]
    pixels = (torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2) / 65535 - 0.5) / 0.3
    with torch.no_grad():
        # the model by itself, told what to embed and what to predict
        visible = torch.full((6, 1), 2)
        masked = torch.tensor([[0, 1, 3]] * 6)
        restore = torch.tensor([[1, 2, 0, 3]] * 6)
        expected = learner.model(pixels, visible, masked, restore, learner.model.embed(pixels * shown))
        whole = learner.model(pixels, visible, masked, restore)
    metrics = learner.train_step(learner.prepare_batch(images), mask, 0.0, 0.0)
    assert abs(float(metrics["loss"]) - float(expected)) < 1e-5
    assert abs(float(whole) - float(expected)) > 1e-4
