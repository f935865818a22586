"""Reconstructions with torch: objectives that predict no pixels, a Swin, drop path, and an image learnt by heart."""

import numpy as np
import pytest
import torch
from tiny_learners import CPU, assert_same_state, pretraining, pretraining_config
from torch.nn.functional import interpolate

from ehm.backends.reconstruction import join_patches, split_patches
from ehm.backends.torch.engine.tensors import to_arrays
from ehm.backends.torch.learners.pretraining import TorchLearner
from ehm.backends.torch.models.dvae import build_tokenizer
from ehm.backends.torch.objectives import beit
from ehm.config import TokenizerConfig
from ehm.storage.arrays import LearnerState
from ehm.storage.checkpoint import save_checkpoint

SMOOTH = {"width": 48, "depth": 2, "decoder_width": 48, "decoder_depth": 1, "norm_pix_loss": False}


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def mask():
    """Eight of sixteen units are hidden, others in each image."""
    return np.random.default_rng(1).permuted(np.tile(np.arange(16) < 8, (4, 1)), axis=1)


def step(learner, images, mask):
    return float(learner.train_step(learner.prepare_batch(images), mask, 1e-3, 0.05)["loss"])


def over_pixels(mask, units, side):
    return mask.reshape(-1, *units).repeat(side, axis=1).repeat(side, axis=2)


def test_patches_lie_row_by_row():
    image = np.arange(4 * 6 * 3).reshape(1, 4, 6, 3)
    patches = split_patches(image.transpose(0, 3, 1, 2), 2)
    assert patches.shape == (1, 6, 2, 2, 3)
    np.testing.assert_array_equal(patches[0, 1], image[0, :2, 2:4])
    np.testing.assert_array_equal(patches[0, 3], image[0, 2:, :2])
    np.testing.assert_array_equal(join_patches(patches, (4, 6)), image)


def test_simmims_loss_with_a_swin_follows_from_its_pixels(images, mask):
    learner = pretraining("swin")
    step(learner, images, mask)
    pixels = learner.reconstruct_images(images, mask).pixels
    data = pretraining_config("swin").data
    difference = np.abs(pixels - images / 255) / np.array(data.std)
    expected = difference[over_pixels(mask, (4, 4), 8)].mean()
    assert step(learner, images, mask) == pytest.approx(expected, rel=1e-4)


def test_no_branch_is_dropped_and_no_step_changed(images, mask):
    sections = {"model": {"drop_path": 0.5}}
    looked_at, plain = pretraining("simmim", **sections), pretraining("simmim", **sections)
    for _ in range(3):
        assert step(looked_at, images, mask) == step(plain, images, mask)
        torch.manual_seed(7)
        first, again = (looked_at.reconstruct_images(images[:3], mask[:3]).pixels for _ in range(2))
        np.testing.assert_array_equal(first, again)
        drawn = torch.rand(3)
        torch.manual_seed(7)
        assert torch.equal(drawn, torch.rand(3))  # nothing was drawn of the common random numbers
    assert looked_at.model.training
    assert_same_state(looked_at.state(), plain.state())


def test_an_image_is_learnt_by_heart():
    """A smooth image with the same mask in every step: hidden patches come back, in place and in colour."""
    rows, columns = np.mgrid[:32, :32]
    image = np.stack([rows * 7, columns * 7, 240 - columns * 3 - rows * 4], axis=-1).astype(np.uint8)[None]
    mask = (np.arange(16) % 4 != 0)[None]
    learner = pretraining("mae", model=SMOOTH, optim={"batch_size": 1}, mask={"ratio": 0.75})
    hidden = over_pixels(mask, (4, 4), 8)

    def compute_psnr():
        pixels = learner.reconstruct_images(image, mask).pixels
        return -10 * np.log10(((pixels - image / 255)[hidden] ** 2).mean())

    assert compute_psnr() < 15
    for _ in range(150):
        learner.train_step(learner.prepare_batch(image), mask, 2e-3, 0.0)
    assert compute_psnr() > 25  # the lowest seen was 42.6


def test_features_agree_as_the_loss_says(images, mask):
    learner = pretraining("mae", objective="feature", model={"loss": "cosine"}, optim={"ema_decay": 0.9})
    step(learner, images, mask)
    reconstruction = learner.reconstruct_images(images, mask)
    assert reconstruction.pixels is None
    assert reconstruction.agreement_name == "cosine"
    expected = 1 - reconstruction.agreement[mask].mean()
    assert step(learner, images, mask) == pytest.approx(expected, rel=1e-4)


@pytest.fixture
def tokenizer(tmp_path):
    """An untrained tokenizer of 8 x 8 pixels as a checkpoint, and its network."""
    config = TokenizerConfig.model_validate({"vocabulary": 32, "width": 16, "image_size": 32})
    torch.manual_seed(0)
    network = build_tokenizer(config)
    meta = {"kind": "tokenizer", "step": 1, "config": config.model_dump(mode="json")}
    path = save_checkpoint(tmp_path, LearnerState(to_arrays(network), {}), meta)
    return path, network.eval()


def test_beits_tokens_are_decoded_by_their_tokenizer(images, mask, tokenizer):
    """Cells of 16 pixels, whose tokens are those of a picture half as large."""
    path, network = tokenizer
    settings = {"objective": "beit", "patch_size": 16, "model": {"tokenizer": str(path), "drop_path": 0.0}}
    config = pretraining_config("simmim", **settings, mask={"unit": 16})
    learner = TorchLearner(config, CPU)
    mask = mask[:, :4]
    mask[:] = [True, False, False, True]
    reconstruction = learner.reconstruct_images(images, mask)

    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    small = interpolate(pixels, size=(16, 16), mode="bicubic", antialias=True).clamp(0, 1)
    decoded, true = network.reconstruct(small)
    large = interpolate(decoded, size=(32, 32), mode="bicubic", antialias=True).clamp(0, 1)
    np.testing.assert_allclose(reconstruction.best_pixels, large.permute(0, 2, 3, 1), atol=1e-3)

    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (config.data.mean, config.data.std))
    hidden = torch.from_numpy(mask)
    learner.model.eval()
    with torch.no_grad():
        tokens = learner.model.embed((pixels - mean) / std)
        logits = learner.model.lm_head(learner.model.encode(tokens, hidden))
        guessed = logits.argmax(-1)
        pictures = network.decoder(network.codebook[guessed].unflatten(1, (2, 2)).permute(0, 3, 1, 2))
        large = interpolate(((pictures + 1) / 2).clamp(0, 1), size=(32, 32), mode="bicubic", antialias=True)
    np.testing.assert_allclose(reconstruction.pixels, large.clamp(0, 1).permute(0, 2, 3, 1), atol=1e-3)
    np.testing.assert_array_equal(reconstruction.agreement, guessed == true)
    assert not np.allclose(reconstruction.pixels, reconstruction.best_pixels, atol=1e-2)


def test_a_tokenizer_without_a_decoder_gives_no_pixels(images, mask, tokenizer, monkeypatch):
    path, _ = tokenizer

    class OtherVae:
        """Stands for all networks of our own, so that the tokenizer is none of them."""

    settings = {"objective": "beit", "model": {"tokenizer": str(path), "drop_path": 0.0}}
    learner = TorchLearner(pretraining_config("simmim", **settings), CPU)
    monkeypatch.setattr(beit, "DiscreteVae", OtherVae)
    reconstruction = learner.reconstruct_images(images, mask)
    assert reconstruction.pixels is None
    assert reconstruction.best_pixels is None
    assert "no decoder" in reconstruction.note
    assert set(np.unique(reconstruction.agreement)) <= {0.0, 1.0}
