"""IDX files, as of Fashion-MNIST: read as torchvision reads them, and refused with one sentence if damaged."""

import gzip
import pickle
import struct

import numpy as np
import pytest
from torchvision.datasets import FashionMNIST

from ehm.config import DataConfig
from ehm.data import Loader, TrainTransform, open_source
from ehm.data.sources.identity import hash_images, identify_source
from ehm.errors import DataError

TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def encode(values):
    """An IDX file as its specification says: zeros, the type, the dimensions, their lengths, the values."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def write(folder, *, images=12, test_images=7, classes=10, compress=False):
    """Write both parts of a small set whose images are noise; returns its arrays by the names of the files."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for (images_name, labels_name), count in ((TRAIN, images), (TEST, test_images)):
        written[images_name] = rng.integers(0, 256, (count, 28, 28), np.uint8)
        written[labels_name] = (np.arange(count) * 3 % classes).astype(np.uint8)
    for name, values in written.items():
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(encode(values)))
        else:
            (folder / name).write_bytes(encode(values))
    return written


def opened(root, split="train", **settings):
    return open_source(DataConfig(source=str(root), **settings), split)


@pytest.mark.parametrize("compress", [False, True])
def test_images_labels_and_names_are_torchvisions(tmp_path, compress):
    write(tmp_path / "FashionMNIST" / "raw")
    write(tmp_path / "own", compress=compress)
    for split in ("train", "val"):
        expected = FashionMNIST(tmp_path, train=split == "train")
        source = opened(tmp_path / "own", split, layout="fashion-mnist")
        assert len(source) == len(expected)
        assert source.classes == tuple(expected.classes)
        assert source.split == split
        for index, (image, label) in enumerate(expected):
            found = source.load(index)
            assert found.mode == "RGB"
            assert np.array_equal(np.asarray(found), np.asarray(image.convert("RGB")))
            assert source.labels[index] == label
    assert len(opened(tmp_path / "own", "all", layout="fashion-mnist")) == 12 + 7


def test_a_folder_is_recognised_and_its_classes_are_numbers(tmp_path):
    write(tmp_path, classes=5)
    source = opened(tmp_path)
    assert source.classes == ("0", "1", "2", "3", "4")
    assert source.notes == (
        "IDX files with parts train, t10k; 5 classes",
        "images: 12 in train, 7 in t10k, which is measured on",
    )
    assert source.name(3) == str(tmp_path / TRAIN[0] / "train-00003")
    assert opened(tmp_path, "all").name(12) == str(tmp_path / TEST[0] / "t10k-00000")


def test_the_training_part_may_be_alone(tmp_path):
    write(tmp_path)
    for name in TEST:
        (tmp_path / name).unlink()
    assert opened(tmp_path).split == "all"
    with pytest.raises(DataError, match=r"no validation part of its own \(no t10k-images-idx3-ubyte in "):
        opened(tmp_path, "val")


def test_fashion_mnist_not_installed_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr("ehm.data.sources.idx._DEBIAN_FOLDER", tmp_path)
    with pytest.raises(DataError, match=r"fashion-mnist: .*apt-get install dataset-fashion-mnist") as raised:
        opened("fashion-mnist")
    assert "\n" not in str(raised.value)
    write(tmp_path, compress=True)
    assert opened("fashion-mnist").classes[9] == "Ankle boot"


def test_a_loader_reads_the_same_with_workers_and_without(tmp_path):
    write(tmp_path)
    source = opened(tmp_path)
    batches = []
    for workers in (0, 1):
        transform = TrainTransform((28, 28))
        with Loader(source, transform, batch_size=4, seed=0, shuffle=True, drop_last=True, workers=workers) as loader:
            batches.append(np.stack([batch.images.copy() for batch in loader.batches(0, 3)]))
    assert batches[0].shape == (3, 4, 28, 28, 3)
    assert np.array_equal(*batches)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.load(2).tobytes() == source.load(2).tobytes()


def test_the_images_are_known_again_elsewhere(tmp_path):
    write(tmp_path / "one")
    write(tmp_path / "two")
    one = identify_source(opened(tmp_path / "one"))
    assert one == identify_source(opened(tmp_path / "two"))
    assert one != identify_source(opened(tmp_path / "one", "val"))
    values = write(tmp_path / "two")[TRAIN[0]]
    values[0] ^= 1
    (tmp_path / "two" / TRAIN[0]).write_bytes(encode(values))
    assert one != identify_source(opened(tmp_path / "two"))
    indices = np.arange(12)
    before = hash_images(opened(tmp_path / "one"), indices, "content")
    after = hash_images(opened(tmp_path / "two"), indices, "content")
    assert (before == after).tolist() == [False] + [True] * 11
    names = [hash_images(opened(tmp_path / "one", split), np.arange(7), "name") for split in ("train", "val")]
    assert not np.intersect1d(*names).size


def with_header(values, **fields):
    header = {"zero": 0, "type": 8, "dimensions": values.ndim} | fields
    data = bytearray(encode(values))
    data[:4] = struct.pack(">HBB", header["zero"], header["type"], header["dimensions"])
    return bytes(data)


PIXELS = np.zeros((12, 28, 28), np.uint8)
LABELS = np.zeros(12, np.uint8)
DAMAGES = {
    "cut off": (TRAIN[0], encode(PIXELS)[:-1], r"holds 9,407 bytes of values instead of 9,408 \(12 x 28 x 28"),
    "too long": (TRAIN[0], encode(PIXELS) + b"x", "holds 9,409 bytes of values instead of 9,408"),
    "header cut off": (TRAIN[0], encode(PIXELS)[:9], "ends within its header"),
    "empty": (TRAIN[1], b"", "begins with nothing instead of 00 00 08 01"),
    "magic": (TRAIN[0], with_header(PIXELS, zero=1), "begins with 00 01 08 03 instead of 00 00 08 03"),
    "type": (TRAIN[0], with_header(PIXELS, type=13), "begins with 00 00 0d 03 instead of 00 00 08 03"),
    "labels as images": (TRAIN[0], encode(LABELS), "no IDX file of bytes in 3 dimensions"),
    "images as labels": (TRAIN[1], encode(PIXELS), "no IDX file of bytes in 1 dimension$"),
    "counts": (TRAIN[1], encode(LABELS[1:]), r"has 11 labels for the 12 images of train-images-idx3-ubyte"),
    "no images": (TRAIN[0], encode(PIXELS[:0]), r"holds no images \(0 of 28 x 28 pixels\)"),
    "no pixels": (TRAIN[0], encode(PIXELS[:, :0]), r"holds no images \(12 of 0 x 28 pixels\)"),
    "label": (TRAIN[1], encode(LABELS + 10), "has the label 10; there are 10 classes"),
    "gzip cut off": (TRAIN[0], gzip.compress(encode(PIXELS))[:-20], "damaged or was not copied completely"),
    "gzip changed": (TRAIN[0], gzip.compress(encode(PIXELS))[:-8] + bytes(8), "damaged or was not copied completely"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_sentence_that_names_the_file(tmp_path, damage):
    file, data, message = DAMAGES[damage]
    write(tmp_path)
    (tmp_path / file).write_bytes(data)
    with pytest.raises(DataError, match=message) as raised:
        opened(tmp_path, layout="fashion-mnist")
    assert str(tmp_path / file) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("file", [*TRAIN, TEST[1]])
def test_a_missing_file_is_named(tmp_path, file):
    write(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(DataError, match=f"no {file} or {file}.gz in {tmp_path}"):
        opened(tmp_path, layout="idx")


def test_parts_of_two_sizes_are_not_joined(tmp_path):
    write(tmp_path)
    (tmp_path / TEST[0]).write_bytes(encode(np.zeros((7, 14, 28), np.uint8)))
    assert len(opened(tmp_path, "val")) == 7
    with pytest.raises(DataError, match="its images have 14 x 28 pixels, others 28 x 28"):
        opened(tmp_path, "all")
