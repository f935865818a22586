"""Fixtures that several folders share."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def images(tmp_path):
    """A folder of twelve small pictures: smooth colour gradients, so that patches differ."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(12):
        corners = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        corners.resize((40, 36), Image.Resampling.BICUBIC).save(folder / f"{index:02d}.png")
    return folder
