"""A patch embedding is adapted to other channels as timm does it, or as its name says."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from timm.models import adapt_input_conv

from ehm.backends.torch.models.loading import load_model
from ehm.config import ModelSource
from ehm.models.channels import adapt_kernel

KERNEL = np.random.default_rng(0).normal(size=(8, 3, 4, 4)).astype(np.float32)


@pytest.mark.parametrize("channels", [2, 4, 7])
def test_repeated_channels_are_those_of_timm(channels):
    expected = adapt_input_conv(channels, torch.from_numpy(KERNEL)).numpy()
    np.testing.assert_allclose(adapt_kernel(KERNEL, channels, "repeat"), expected, rtol=1e-6)


def test_one_channel_sums_up_what_grey_would_have_given():
    np.testing.assert_allclose(
        adapt_kernel(KERNEL, 1, "mean"), adapt_input_conv(1, torch.from_numpy(KERNEL)), rtol=1e-5
    )


def test_the_mean_answers_to_equal_channels_as_the_weights_do():
    grey = np.random.default_rng(1).normal(size=(4, 4))
    answer = (KERNEL * grey).sum(axis=(1, 2, 3))
    for channels in (1, 5, 64):
        adapted = adapt_kernel(KERNEL, channels, "mean")
        np.testing.assert_allclose((adapted * grey).sum(axis=(1, 2, 3)), answer, rtol=1e-4)


def test_the_first_channels_stay_as_they_are():
    adapted = adapt_kernel(KERNEL, 5, "first")
    np.testing.assert_array_equal(adapted[:, :3], KERNEL)
    assert not adapted[:, 3:].any()
    np.testing.assert_array_equal(adapt_kernel(KERNEL, 2, "first"), KERNEL[:, :2])


def test_a_network_is_loaded_for_other_channels_and_says_so(tmp_path):
    scratch = load_model(ModelSource(encoder="vit_tiny", width=48, depth=1, heads=3, patch_size=8, image_size=16))
    weights = {name: value.numpy() for name, value in scratch.model.state_dict().items()}
    save_file(weights, tmp_path / "weights.safetensors")
    source = ModelSource(init=str(tmp_path / "weights.safetensors"), heads=3, adapt_channels="first")
    loaded = load_model(source, channels=5)
    assert "adapted from 3 to 5 channels: the first ones are kept" in " ".join(loaded.notes)
    images = torch.rand(2, 5, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.model.eval().forward_features(images), scratch.model.eval().forward_features(images[:, :3])
        )
    # and a network of timm's that is none of ours
    convolutional = load_model(ModelSource(init="timm:resnet10t?pretrained=false", adapt_channels="repeat"), channels=5)
    assert convolutional.model.eval()(torch.rand(1, 5, 32, 32)).shape[0] == 1
    assert "from 3 to 5 channels" in convolutional.notes[-1]
