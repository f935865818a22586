"""Scores enlarged to an image's own size: torch's, whatever the parts; windows of an image that is a line of pixels."""

import numpy as np
import pytest
import torch

from ehm.data import bilinear
from ehm.deploy.predict.segmentation import Mosaic


@pytest.mark.parametrize("most", [1 << 24, 600, 7])
@pytest.mark.parametrize("size", [(9, 13), (150, 40), (32, 17), (1, 900)])
def test_classes_of_enlarged_scores_are_torchs(size, most, monkeypatch):
    monkeypatch.setattr(bilinear, "MOST_SCORES", most)
    scores = np.random.default_rng(0).standard_normal((5, 32, 17)).astype(np.float32)
    larger = torch.nn.functional.interpolate(torch.from_numpy(scores)[None], size, mode="bilinear", align_corners=False)
    np.testing.assert_array_equal(bilinear.enlarge_argmax(scores, size), larger[0].argmax(0))


@pytest.mark.parametrize("size", [(3, 70), (70, 3), (5, 5), (40, 33)])
def test_windows_show_the_image_with_zeros_around_it_and_their_scores_are_averaged(size):
    pixels = np.random.default_rng(0).standard_normal((3, *size)).astype(np.float32)
    mosaic = Mosaic(pixels, (16, 16), (8, 8))
    assert mosaic.pixel_count == size[0] * size[1]
    padded = np.zeros((3, max(16, size[0]), max(16, size[1])), np.float32)
    padded[:, : size[0], : size[1]] = pixels
    for start in range(0, len(mosaic), 4):
        inputs = mosaic.inputs(start, 4)
        for window in inputs:
            places = np.lib.stride_tricks.sliding_window_view(padded, (3, 16, 16))[0]
            assert (places == window).all(axis=(2, 3, 4)).any()
        mosaic.add_scores(start, inputs)
    np.testing.assert_array_equal(mosaic.make_labels(size), pixels.argmax(axis=0))


def test_a_line_of_a_million_pixels_takes_little_more_than_its_own_memory():
    mosaic = Mosaic(np.zeros((3, 1, 1_000_000), np.float32), (512, 512), (341, 341))
    assert mosaic.pixel_count == 1_000_000
    assert mosaic.inputs(2000, 4).shape == (4, 3, 512, 512)
    scores = np.zeros((2, 1, 40), np.float32)
    scores[1] = 1
    assert bilinear.enlarge_argmax(scores, (1, 3_000_000)).min() == 1
