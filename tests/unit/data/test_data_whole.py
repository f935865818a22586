"""Whole images: their proportions, and that every process reads its share, whatever is broken."""

import numpy as np
import pytest
from PIL import Image

from ehm.data import Loader
from ehm.data.sampler import repeat_to_multiple
from ehm.data.sources.folder import open_folder
from ehm.errors import BrokenImage, DataError
from ehm.tasks.retrieval.transforms import ShrinkTransform


@pytest.mark.parametrize(
    ("size", "shape"),
    [((300, 200), (67, 100, 3)), ((200, 300), (100, 67, 3)), ((90, 30), (30, 90, 3)), ((5000, 1), (1, 100, 3))],
)
def test_proportions_are_kept_and_nothing_is_enlarged(size, shape):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    pixels = ShrinkTransform(100)(image)
    assert pixels.shape == shape
    assert pixels.flags.writeable
    if max(size) <= 100:
        np.testing.assert_array_equal(pixels, np.asarray(image))


@pytest.fixture
def pictures(tmp_path):
    """Seven of different sizes, the third broken; an image's colour is its number."""
    for number in range(7):
        file = tmp_path / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (20 + number, 10), (number, 0, 0)).save(file)
    (tmp_path / "a" / "2.png").write_bytes(b"no picture")
    return open_folder(str(tmp_path), "all")


def load(source, threads, **options):
    defaults = {"batch_size": 1, "seed": 0, "shuffle": False, "drop_last": False}
    return Loader(source, ShrinkTransform(100), workers=threads, **defaults | options)


@pytest.mark.parametrize("threads", [0, 2])
def test_processes_share_the_images_evenly(pictures, threads):
    seen = []
    shared = repeat_to_multiple(np.arange(7), 3)
    for rank in range(3):
        loader = load(pictures, threads, batch_size=3, subset=shared, rank=rank, world_size=3)
        assert loader.steps_per_epoch == 3
        batches = list(loader.batches(0, 3))
        assert len(batches) == 3
        for batch in batches:
            (image,) = batch.images
            number = image[0, 0, 0]
            index = int(batch.indices[0])
            assert pictures.name(index).endswith(f"{number}.png")
            assert image.shape == (10, 20 + number, 3)
            assert batch.labels == [pictures.labels[index]]
            seen.append(index)
        assert all(name.endswith("2.png") for name in loader.unreadable)
    assert {pictures.name(index)[-5:] for index in seen} == {f"{number}.png" for number in (0, 1, 3, 4, 5, 6)}


def test_parts_and_what_is_wrong(pictures):
    loader = load(pictures, 0, subset=np.array([5, 3]))
    assert [int(batch.indices[0]) for batch in loader.batches(0, loader.steps_per_epoch)] == [5, 3]
    with pytest.raises(BrokenImage, match=r"2\.png: not an image"):
        list(load(pictures, 2, strict=True).batches(0, 7))
    with pytest.raises(DataError, match="nothing to load"):
        load(pictures, 0, subset=np.zeros(0))
