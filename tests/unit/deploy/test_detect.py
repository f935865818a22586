"""The work of a detector's bundle around its network, in NumPy, against torch, torchvision and pycocotools."""

import numpy as np
import pytest
import torch
from pycocotools import mask as tools
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from ehm.deploy.bundle.manifest import Fit
from ehm.deploy.predict.detection import DetectedObject, collect_objects, paste_mask, place_image, resize_bilinear


@pytest.mark.parametrize("size", [(5, 7), (31, 9), (60, 80), (13, 21)])
def test_resizing_is_torchs(size):
    values = np.random.default_rng(0).random((13, 21, 3), dtype=np.float32)
    expected = F.interpolate(torch.from_numpy(values).permute(2, 0, 1)[None], size, mode="bilinear")
    np.testing.assert_allclose(resize_bilinear(values, size), expected[0].permute(1, 2, 0).numpy(), atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(60, 90), (90, 60), (40, 200), (300, 250)])
def test_images_are_placed_as_torchvision_resizes_and_pads_them(height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    ours = place_image(image, Fit(shorter=64, longer=96, threshold=0), (96, 96), np.zeros(3, np.float32))
    transform = GeneralizedRCNNTransform(64, 96, [0.0] * 3, [1.0] * 3, size_divisible=96).eval()
    theirs, _ = transform([torch.from_numpy(image).permute(2, 0, 1).float()])
    assert [ours.inside] == theirs.image_sizes
    np.testing.assert_allclose(ours.pixels, theirs.tensors[0].permute(1, 2, 0).numpy(), atol=0.02)


def test_an_image_that_would_be_too_high_is_made_to_fit():
    ours = place_image(
        np.full((90, 60, 3), 7, np.uint8), Fit(shorter=64, longer=96, threshold=0), (64, 96), np.zeros(3)
    )
    assert ours.inside == (64, 42)
    assert (ours.pixels[:64, :42] == 7).all()
    assert not ours.pixels[:, 42:].any()


def test_masks_are_pasted_as_torchvision_does():
    rng, size = np.random.default_rng(0), (40, 60)
    boxes = [[3.2, 4.7, 30.1, 33.9], [0, 0, 60, 40], [50.5, 30.2, 59.9, 39.8], [10, 10, 11.2, 39], [20, 20, 20.3, 20.2]]
    for box in np.array(boxes, np.float32):
        coarse = torch.from_numpy(rng.random((1, 1, 5, 5), dtype=np.float32))
        mask = F.interpolate(coarse, (28, 28), mode="bilinear").numpy()
        expected = paste_masks_in_image(torch.from_numpy(mask), torch.from_numpy(box[None]), size)[0, 0] > 0.5
        ours = paste_mask(mask[0, 0], box, size)
        assert (ours != expected.numpy()).mean() < 0.001


def test_objects_come_back_in_the_images_own_pixels():
    placed = place_image(
        np.zeros((100, 50, 3), np.uint8), Fit(shorter=64, longer=100, threshold=0.5), (64, 64), np.zeros(3)
    )
    assert placed.inside == (64, 32)
    outputs = {
        "boxes": np.array([[8, 16, 32, 64], [0, 0, 20, 20], [40, 0, 60, 20]], np.float32),
        "labels": np.array([1, 0, 0]),
        "scores": np.array([0.9, 0.4, 0.8], np.float32),
        "masks": np.ones((3, 28, 28), np.float32),
    }
    (only,) = collect_objects(outputs, placed, 0.5, ("cat", "cup"))
    assert (only.label, only.box) == ("cup", (12.5, 25, 50, 100))  # the last one lies beside the image
    assert only.mask.shape == (100, 50)
    assert only.mask[30:, 15:].all()
    assert not only.mask[:20].any()


@pytest.mark.parametrize("first", [False, True])
def test_masks_are_written_as_cocos_run_lengths(first):
    mask = np.random.default_rng(0).random((9, 7)) > 0.5
    mask[0, 0] = first
    code = DetectedObject("cat", 0.5, (0, 0, 1, 1), mask).as_dict()["mask"]
    assert code["size"] == [9, 7]
    packed = tools.frPyObjects(code, 9, 7)
    assert packed["counts"] == tools.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
