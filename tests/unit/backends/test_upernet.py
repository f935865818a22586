"""UperNet's parts against torch's own, and against plain loops."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ehm.backends.torch.learners.segmentation import TorchSegmenter, pixel_loss
from ehm.backends.torch.models.pyramid import find_nested_layers, load_pyramid
from ehm.backends.torch.models.upernet import UperNet, compute_adaptive_mean
from ehm.config import ModelSource, SegmentationConfig, UperNetConfig
from ehm.data.segmentation import place_windows
from ehm.errors import ConfigError

CPU = torch.device("cpu")
NARROW = UperNetConfig(channels=16, auxiliary_channels=8)


def tiny(**sections):
    values = {
        "model": {"encoder": "vit_tiny", "width": 16, "depth": 6, "heads": 2, "image_size": 32, "patch_size": 8},
        "crop_size": 32,
        "head": NARROW.model_dump(),
        "optim": {"dtype": "float32", "batch_size": 4},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    return SegmentationConfig.model_validate(values)


def segmenter(**sections):
    return TorchSegmenter(tiny(**sections), 3, CPU)


@pytest.mark.parametrize("size", [(16, 16), (7, 5), (6, 11), (1, 2)])
def test_parts_of_a_map_are_averaged_as_torch_does(size):
    level = torch.randn(2, 3, *size, requires_grad=True)
    for parts in (1, 2, 3, 6):
        ours, theirs = compute_adaptive_mean(level, parts), F.adaptive_avg_pool2d(level, parts)
        torch.testing.assert_close(ours, theirs)
        (gradient,) = torch.autograd.grad(ours.square().sum(), level)
        torch.testing.assert_close(gradient, torch.autograd.grad(theirs.square().sum(), level)[0])


def test_the_loss_is_the_mean_over_all_pixels_and_that_of_a_batch_the_mean_of_its_parts():
    torch.manual_seed(0)
    scores, labels = torch.randn(4, 5, 8, 8), torch.randint(0, 5, (4, 16, 16))
    labels[0, :, :12] = labels[3, 2] = 255
    logits = F.interpolate(scores, (16, 16), mode="bilinear", align_corners=False)
    each = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")
    torch.testing.assert_close(pixel_loss(scores, labels), each.mean())
    parts = torch.stack([pixel_loss(scores[rows], labels[rows]) for rows in (slice(0, 2), slice(2, 4))])
    torch.testing.assert_close(parts.mean(), pixel_loss(scores, labels))
    assert pixel_loss(scores[:1], labels[:1] * 0 + 255) == 0  # not NaN


def test_windows_are_those_of_mmsegmentation():
    assert place_windows((512, 683), (512, 512), (341, 341)) == [(0, 0), (0, 171)]
    assert place_windows((512, 512), (512, 512), (341, 341)) == [(0, 0)]
    for size in ((40, 75), (64, 32), (33, 97)):
        crop, stride, expected = (32, 32), (21, 21), []
        for row in range(max(size[0] - crop[0] + stride[0] - 1, 0) // stride[0] + 1):
            for column in range(max(size[1] - crop[1] + stride[1] - 1, 0) // stride[1] + 1):
                bottom, right = min(row * 21 + 32, size[0]), min(column * 21 + 32, size[1])
                expected.append((max(bottom - 32, 0), max(right - 32, 0)))
        assert place_windows(size, crop, stride) == expected
        covered = np.zeros(size, bool)
        for y, x in expected:
            covered[y : y + 32, x : x + 32] = True
        assert covered.all()


def scores_of(model, pixels):
    model.eval()
    with torch.no_grad():
        return F.interpolate(model(pixels)[0], pixels.shape[2:], mode="bilinear", align_corners=False)


def test_sliding_is_the_mean_of_the_windows_and_whole_is_one_pass():
    learner = segmenter(inference={"mode": "slide", "stride": 20})
    torch.manual_seed(1)
    for parameter in learner.model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    image = np.random.default_rng(0).integers(0, 256, (50, 71, 3), np.uint8)
    pixels = learner._pixels(image[None])
    total, counts = torch.zeros(1, 3, 50, 71), torch.zeros(50, 71)
    for y in (0, 18):
        for x in (0, 20, 39):
            total[:, :, y : y + 32, x : x + 32] += scores_of(learner.model, pixels[:, :, y : y + 32, x : x + 32])
            counts[y : y + 32, x : x + 32] += 1
    with torch.no_grad():
        torch.testing.assert_close(learner._score_windows(pixels), total / counts, rtol=1e-3, atol=1e-3)
    expected = F.interpolate(total / counts, (25, 30), mode="bilinear", align_corners=False).argmax(1)[0]
    found = learner.segment_image(image, (25, 30))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) > 1

    whole = segmenter(inference={"mode": "whole"})
    whole.load(learner.state())
    padded = F.pad(pixels, (0, 96 - 71, 0, 64 - 50))
    expected = scores_of(whole.model, padded)[:, :, :50, :71].argmax(1)[0]
    np.testing.assert_array_equal(whole.segment_image(image, (50, 71)), expected)
    assert (
        whole.segment_image(image[:9, :7], (9, 7)).shape == learner.segment_image(image[:9, :7], (9, 7)).shape == (9, 7)
    )


def test_layers_learn_at_the_rates_of_mmsegmentation_for_twelve_blocks():
    learner = segmenter(model={"depth": 12}, layer_decay=0.65)
    names = {id(value): name for name, value in learner.model.named_parameters()}
    rates = {
        names[id(value)]: group["lr_scale"]
        for group in learner._training.optimizer.param_groups
        for value in group["params"]
    }
    inside = "pyramid.encoder."
    assert rates["classify.1.weight"] == rates["pyramid.neck.0.0.weight"] == rates["auxiliary.0.0.weight"] == 1
    assert rates[f"{inside}blocks.11.mlp.fc2.weight"] == pytest.approx(0.65)
    assert rates[f"{inside}blocks.0.mlp.fc2.weight"] == pytest.approx(0.65**12)
    assert rates[f"{inside}patch_embed.proj.weight"] == rates[f"{inside}pos_embed"] == pytest.approx(0.65**13)
    decays = {names[id(v)]: g["decays"] for g in learner._training.optimizer.param_groups for v in g["params"]}
    assert not decays[f"{inside}pos_embed"]
    assert decays["classify.1.weight"]
    assert not any("norm.weight" in name for name in rates if name.startswith(f"{inside}fc_norm"))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("timm:vit_tiny_patch16_224?pretrained=false", (64, 96)),
        ("timm:resnet10t?pretrained=false", (64, 96)),
        ("timm:convnext_atto?pretrained=false", (64, 64)),
        ("timm:swin_tiny_patch4_window7_224?pretrained=false", (224, 224)),
    ],
)
def test_every_parameter_that_is_trained_has_a_gradient(name, size):
    """Or several processes would wait for it."""
    pyramid, _ = load_pyramid(ModelSource(init=name), size)
    model = UperNet(pyramid, 4, NARROW)
    scores, auxiliary = model(torch.randn(2, 3, *size))
    assert scores.shape == (2, 4, size[0] // 4, size[1] // 4)
    assert auxiliary.shape == (2, 4, size[0] // 16, size[1] // 16)
    (scores.mean() + auxiliary.mean()).backward()
    assert [n for n, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None] == []
    layers = find_nested_layers(model)
    assert layers["classify.1.weight"] == 1 + max(
        layer for n, layer in layers.items() if "encoder." in n and model.get_parameter(n).requires_grad
    )


def test_settings_that_cannot_work_are_one_sentence():
    with pytest.raises(
        ConfigError, match=r"inference.mode whole: this encoder .* takes images of crop_size \[32, 32\]"
    ):
        segmenter(
            model={"encoder": "swin_tiny", "width": 8, "depth": [1, 1, 1, 1], "heads": [1, 1, 1, 1], "patch_size": 4},
            inference={"mode": "whole"},
        )
    learner = segmenter(optim={"accumulate": 4})
    images, labels = np.zeros((4, 32, 32, 3), np.uint8), np.zeros((4, 32, 32), np.uint8)
    with pytest.raises(ConfigError, match=r"parts of 1, 1, 1, 1 images, and UperNet's batch norm needs 2"):
        learner.train_step(images, labels, 1e-3, 0.05)
