"""Reconstructed pixels, for every backend: the loss of a step follows from them, and drawing them changes no step."""

import numpy as np
import pytest

from ehm.config.inputs import IMAGENET_MEAN, IMAGENET_STD

SIDE = 8
"""Side of a patch in pixels."""


def cut(pixels):
    """The patches of (B, H, W, 3), row by row, normalised as the model's images are: (B, N, values of a patch)."""
    normalised = (pixels - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    patches = []
    for top in range(0, pixels.shape[1], SIDE):
        for left in range(0, pixels.shape[2], SIDE):
            patches.append(normalised[:, top : top + SIDE, left : left + SIDE].reshape(len(pixels), -1))
    return np.stack(patches, axis=1)


def mean_of_hidden(values, mask):
    return float(values[mask].mean())


def squared_error_of_normalised_patches(predicted, true, mask):
    """MAE's loss with norm_pix_loss: of each patch apart from its mean and its deviation (divided by P - 1)."""
    deviation = np.sqrt(true.var(axis=2, ddof=1, keepdims=True) + 1e-6)
    return mean_of_hidden(((predicted - true) / deviation) ** 2, mask)


def squared_error(predicted, true, mask):
    return mean_of_hidden((predicted - true) ** 2, mask)


def absolute_error(predicted, true, mask):
    return mean_of_hidden(np.abs(predicted - true), mask)


LOSSES = {
    "mae": ({}, squared_error_of_normalised_patches),
    "mae of pixels": ({"model": {"norm_pix_loss": False}, "mask": {"unit": 16}}, squared_error),
    "simmim": ({"objective": "simmim", "model": {"drop_path": 0.0}, "mask": {"unit": 8}}, absolute_error),
}
UNITS = np.tile(np.array([1, 0, 1, 1, 1, 0], bool), (6, 1))
"""Masks of units of 2 x 2 patches, two down and three across."""


def assert_same_state(left, right):
    for ours, theirs in ((left.model, right.model), (left.optimizer, right.optimizer)):
        assert ours.keys() == theirs.keys()
        for name, array in ours.items():
            np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def train(learner, images, mask, count):
    losses = []
    for _ in range(count):
        losses.append(float(learner.train_step(learner.prepare_batch(images), mask, 1e-3, 0.05)["loss"]))
    return losses


@pytest.mark.parametrize(
    "name",
    ["mae", *(pytest.param(name, marks=pytest.mark.full_for("mindspore")) for name in ("mae of pixels", "simmim"))],
)
def test_the_loss_of_a_step_follows_from_the_reconstruction(make_learner, config, batch, name):
    sections, compute_loss = LOSSES[name]
    settings = config(**sections)
    learner = make_learner(settings)
    images, patches = batch
    mask = patches
    if settings.unit == 16:
        mask = UNITS
        patches = UNITS.reshape(-1, 2, 3).repeat(2, axis=1).repeat(2, axis=2).reshape(len(images), -1)
    train(learner, images, mask, 2)
    before = learner.state()
    reconstruction = learner.reconstruct_images(images, mask)
    assert_same_state(before, learner.state())
    assert reconstruction.pixels.dtype == np.float32
    assert reconstruction.pixels.shape == images.shape
    assert reconstruction.note.endswith(".")
    expected = compute_loss(cut(reconstruction.pixels), cut(images / 255), patches)
    assert train(learner, images, mask, 1)[0] == pytest.approx(expected, rel=1e-4)


def test_what_a_mask_hides_is_not_seen(make_learner, config, batch):
    """The prediction of hidden patches is that of any image with the same visible ones; brightness is the image's."""
    learner = make_learner(config(model={"norm_pix_loss": False}))
    images, mask = batch
    hidden = mask.reshape(-1, 4, 6).repeat(SIDE, axis=1).repeat(SIDE, axis=2)
    other = np.where(hidden[..., None], 255 - images, images)
    before, after = (learner.reconstruct_images(each, mask).pixels for each in (images, other))
    np.testing.assert_allclose(before, after, atol=1e-6)
    changed = learner.reconstruct_images(np.where(hidden[..., None], images, 255 - images), mask).pixels
    assert not np.allclose(before, changed, atol=1e-3)


def test_mixed_precision_reconstructs_alike(backend, make_learner, config, batch):
    images, mask = batch
    whole = None
    for dtype in sorted(backend.describe_device().dtypes, key="float32".__ne__):
        learner = make_learner(config(optim={"dtype": dtype}))
        pixels = learner.reconstruct_images(images, mask).pixels
        if whole is None:
            whole = pixels
        assert pixels.dtype == np.float32
        np.testing.assert_allclose(pixels, whole, atol=0.05)
