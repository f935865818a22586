"""Batches of the loader: the same however many workers and ranks make them, and without files that cannot be read."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_images import (
    NumberedImages,
    OnePixel,
    are_equal,
    list_all_indices,
    list_indices,
    load_batches,
    make_loader,
)

from ehm.config import DataConfig
from ehm.data import EvalTransform, TrainTransform, open_source
from ehm.errors import BrokenImage, ConfigError, DataError


@pytest.fixture
def folder(images):
    """The twelve pictures of conftest's, and two files that are none."""
    (images / "05-torn.png").write_bytes((images / "05.png").read_bytes()[:60])
    (images / "07-text.png").write_text("no picture")
    return open_source(DataConfig(source=str(images)))


def test_any_number_of_workers_gives_the_same_batches(folder):
    transform = TrainTransform((24, 32), rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5)
    options = {"transform": transform, "batch_size": 5, "seed": 7}
    inline = load_batches(folder, 0, 9, 0, **options)
    assert [len(batch.images) for batch in inline] == [5, 5, 4] * 3
    for workers in (1, 3):
        assert are_equal(inline, load_batches(folder, 0, 9, workers, **options))
    assert not are_equal(inline[:3], load_batches(folder, 0, 3, **options | {"seed": 8}))
    for batch in inline:
        assert batch.images.dtype == np.uint8
        assert batch.images.shape[1:] == (24, 32, 3)
        assert batch.images.flags["C_CONTIGUOUS"]
        assert batch.images.flags["OWNDATA"]
        assert batch.labels is None
        assert batch.indices.dtype == np.int64


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_is_a_function_of_its_step(folder, workers):
    options = {"transform": TrainTransform((16, 16)), "batch_size": 4}
    whole = load_batches(folder, 0, 12, **options)
    assert are_equal(whole[5:11], load_batches(folder, 5, 11, workers, **options))
    assert load_batches(folder, 3, 3, workers, **options) == []


def test_pixels_depend_on_seed_epoch_and_index_alone(images):
    source = open_source(DataConfig(source=str(images)))
    transform = TrainTransform((16, 16))

    def by_index(start, stop, **options):
        batches = load_batches(source, start, stop, transform=transform, **options)
        return {int(i): image for batch in batches for i, image in zip(batch.indices, batch.images, strict=True)}

    reference = by_index(3, 6)
    other = by_index(1, 2, batch_size=12, shuffle=False)
    assert sorted(reference) == sorted(other) == list(range(12))
    assert all((reference[index] == other[index]).all() for index in reference)
    next_epoch = by_index(6, 9)
    assert sum((reference[index] == next_epoch[index]).all() for index in reference) < 3


@given(st.integers(1, 40), st.integers(1, 12), st.booleans(), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_an_epoch_has_every_image_once(count, batch_size, drop_last, seed):
    with make_loader(NumberedImages(count), batch_size=batch_size, drop_last=drop_last, seed=seed) as loader:
        steps = loader.steps_per_epoch
        first, second = (list(loader.batches(epoch * steps, (epoch + 1) * steps)) for epoch in (0, 1))
    for epoch in (first, second):
        seen = list_all_indices(epoch)
        assert len(set(seen)) == len(seen)
        sizes = [len(batch.indices) for batch in epoch]
        if drop_last and count >= batch_size:
            assert sizes == [batch_size] * (count // batch_size)
        else:
            assert sorted(seen) == list(range(count))
            assert sizes == [batch_size] * (count // batch_size) + [count % batch_size] * bool(count % batch_size)
    if len(first[0].indices) > 5:
        assert list_indices(first) != list_indices(second)


def test_without_shuffling_the_order_is_the_sources():
    assert list_indices(load_batches(NumberedImages(10), 2, 5, shuffle=False)) == [[8, 9], [0, 1, 2, 3], [4, 5, 6, 7]]


def test_labels_belong_to_the_images():
    for batch in load_batches(NumberedImages(11), 0, 6, workers=2):
        assert (batch.labels == batch.indices % 2).all()
        assert (batch.images[:, 0, 0, 0] == batch.indices).all()


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_the_global_batch(world_size):
    options = {"batch_size": 8, "transform": EvalTransform((4, 4))}
    whole = list_indices(load_batches(NumberedImages(30), 0, 8, **options))
    parts = [
        list_indices(load_batches(NumberedImages(30), 0, 8, **options, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert [list(chain(*step)) for step in zip(*parts, strict=True)] == whole
    sizes = [[len(batch) for batch in step] for step in zip(*parts, strict=True)]
    assert all(max(step) - min(step) <= 1 for step in sizes)


def test_a_subset_is_all_that_is_seen():
    subset = np.array([9, 3, 4, 0, 7])
    batches = load_batches(NumberedImages(10, broken=frozenset({3})), 0, 40, subset=subset, batch_size=3)
    assert set(list_all_indices(batches)) == {9, 4, 0, 7}
    assert [len(batch.indices) for batch in batches] == [3, 2] * 20


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_files_are_replaced_and_listed(folder, workers, images):
    with make_loader(folder, workers, transform=TrainTransform((16, 16))) as loader:
        batches = list(loader.batches(0, 2 * loader.steps_per_epoch))
        assert set(loader.unreadable) == {str(images / "05-torn.png"), str(images / "07-text.png")}
        assert loader.unreadable[str(images / "07-text.png")] == "not an image of a known format"
    assert are_equal(batches, load_batches(folder, 0, len(batches), transform=TrainTransform((16, 16))))
    names = {folder.name(index) for batch in batches for index in batch.indices}
    assert not names & set(loader.unreadable)
    assert sum(len(batch.indices) for batch in batches) == 2 * len(folder)


@pytest.mark.parametrize("workers", [0, 2])
def test_strict_raises_the_first_broken_file(folder, workers):
    with make_loader(folder, workers, strict=True) as loader, pytest.raises(BrokenImage, match=r"(torn|text)\.png: "):
        list(loader.batches(0, loader.steps_per_epoch))


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_but_broken_files_is_an_error(workers):
    source = NumberedImages(10, broken=frozenset(range(10)))
    with (
        make_loader(source, workers) as loader,
        pytest.raises(DataError, match=r"100 images in a row .* image-\d: torn"),
    ):
        next(loader.batches(0, 5))


def test_what_does_not_fit_is_said_at_once():
    with pytest.raises(DataError, match="nothing to load"):
        make_loader(NumberedImages(0))
    with pytest.raises(DataError, match="nothing to load"):
        make_loader(NumberedImages(3), subset=np.array([], dtype=np.int64))
    with pytest.raises(ConfigError, match="batch_size 6 is not a positive multiple of the 4"):
        make_loader(NumberedImages(9), batch_size=6, world_size=4)
    with pytest.raises(DataError, match="3 images cannot be shared by 4"):
        make_loader(NumberedImages(3), world_size=4)


def test_two_iterators_at_once():
    with make_loader(NumberedImages(20), 1) as loader:
        pairs = list(zip(loader.batches(0, 5), loader.batches(0, 5), strict=True))
    assert all(are_equal([first], [second]) for first, second in pairs)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_batch_of_many_images(workers):
    for batch in load_batches(
        NumberedImages(5000), 0, 2, workers, batch_size=4999, drop_last=True, transform=OnePixel()
    ):
        assert len(set(batch.indices.tolist())) == 4999
        assert (batch.images[:, 0, 0, 0] == batch.indices % 256).all()
