"""A source is known again wherever it lies, and an image by its bytes wherever it is stored."""

import hashlib
import io
import json
import os
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from ehm.config import DataConfig, SegmentationData
from ehm.data import open_source
from ehm.data.sources.coco import read_coco
from ehm.data.sources.identity import UNREADABLE, hash_images, identify_source
from ehm.data.sources.pairs import open_pairs


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # of the index of tar files


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8)).save(path)
    return tmp_path / "data"


def identify(source, split="all"):
    return identify_source(open_source(DataConfig(source=str(source)), split))


def keys(source, kind="content"):
    opened = open_source(DataConfig(source=str(source)), "all")
    return hash_images(opened, np.arange(len(opened)), kind).tolist()


def test_it_is_the_digest_of_names_and_sizes_in_order(folder):
    digest = hashlib.sha256()
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        digest.update(f"{name}\0{os.path.getsize(folder / name)}\0".encode())
    found = identify(folder)
    assert (found.images, found.files) == (3, digest.hexdigest())
    assert found == identify_source(open_source(DataConfig(source=str(folder))), threads=3)


def test_it_is_the_same_wherever_the_images_lie(folder, tmp_path, monkeypatch):
    expected = identify(folder)
    monkeypatch.chdir(tmp_path)
    os.symlink(folder, tmp_path / "link")
    shutil.copytree(folder, tmp_path / "elsewhere" / "train")
    for spelling in ("data", "data/", "./data", "link", f"{folder}/../data", "elsewhere/train"):
        assert identify(spelling) == expected, spelling
    (tmp_path / "elsewhere" / "val" / "a").mkdir(parents=True)
    shutil.copy(folder / "a" / "1.png", tmp_path / "elsewhere" / "val" / "a" / "x.png")
    assert identify("elsewhere", "train") == expected


def test_it_changes_with_what_the_source_holds(folder):
    seen = [identify(folder)]
    (folder / "b" / "1.png").rename(folder / "b" / "2.png")
    seen.append(identify(folder))
    (folder / "b").rename(folder / "c")
    seen.append(identify(folder))
    (folder / "c" / "2.png").write_bytes((folder / "c" / "2.png").read_bytes() + b"x")
    seen.append(identify(folder))
    (folder / "c" / "2.png").write_bytes((folder / "c" / "2.png").read_bytes()[:-1] + b"y")
    changed = identify(folder)
    assert changed.files == seen[-1].files  # of the same name and size
    assert changed.sample != seen[-1].sample
    shutil.copy(folder / "a" / "1.png", folder / "a" / "3.png")
    seen.append(identify(folder))
    assert len({each.files for each in seen}) == len(seen)


def write_shard(path, folder, label=0, prefix=""):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, file in enumerate(sorted(folder.rglob("*.png"))):
            for suffix, data in ((".png", file.read_bytes()), (".cls", f"{(number + label) % 2}".encode())):
                member = tarfile.TarInfo(f"{prefix}{number:04d}{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path.parent


def test_labels_count_where_no_name_shows_them(folder, tmp_path):
    first = identify(write_shard(tmp_path / "first" / "x.tar", folder))
    again = identify(write_shard(tmp_path / "again" / "x.tar", folder))
    other = identify(write_shard(tmp_path / "other" / "x.tar", folder, label=1))
    assert first == again
    assert (other.files, other.images) == (first.files, first.images)
    assert other.labels != first.labels


def test_members_that_begin_with_a_dot_are_named_so_wherever_the_shards_lie(folder, tmp_path, monkeypatch):
    """``tar -C FOLDER .`` writes such names."""
    shards = write_shard(tmp_path / "dots" / "x.tar", folder, prefix="./")
    monkeypatch.chdir(tmp_path)
    digest = hashlib.sha256()
    for number, file in enumerate(sorted(folder.rglob("*.png"))):
        digest.update(f"./{number:04d}.png\0{file.stat().st_size}\0".encode())
    assert [identify(spelling).files for spelling in (shards, "dots", "./dots")] == [digest.hexdigest()] * 3


def test_masks_and_boxes_count_too(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        Image.new("L", (4, 4), 1).save(tmp_path / kind / "0.png")
    (tmp_path / "classes.txt").write_text("one\ntwo\n")
    pairs = identify_source(open_pairs(SegmentationData(source=str(tmp_path)), "train"))
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(tmp_path / "masks" / "0.png")
    other = identify_source(open_pairs(SegmentationData(source=str(tmp_path)), "train"))
    assert pairs.files == other.files
    assert pairs.labels != other.labels

    content = {
        "images": [{"id": 1, "file_name": "0.png", "height": 4, "width": 4}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2]}],
    }
    found = []
    for width in (2, 3):
        content["annotations"][0]["bbox"][2] = width
        (tmp_path / "instances.json").write_text(json.dumps(content))
        found.append(identify_source(read_coco(str(tmp_path), "train", masks=False)))
    assert found[0].files == found[1].files
    assert found[0].labels != found[1].labels


def test_an_image_is_known_by_its_bytes_in_folders_and_in_tar_files(folder, tmp_path):
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for number, file in enumerate(sorted(folder.rglob("*.png"))):
        shutil.copy(file, renamed / f"{9 - number}.png")
    shards = write_shard(tmp_path / "shards" / "x.tar", folder)
    assert keys(renamed)[::-1] == keys(folder) == keys(shards)
    assert len(set(keys(folder))) == 3
    names = [f"{file.name}\0{file.stat().st_size}".encode() for file in sorted(folder.rglob("*.png"))]
    digests = [hashlib.blake2b(name, digest_size=8).digest() for name in names]
    assert keys(folder, "name") == [int.from_bytes(digest, "little") for digest in digests]


@pytest.mark.parametrize("size", [1, 4096, 256 * 1024, 256 * 1024 + 1, 3_000_000])
def test_large_files_of_the_same_size_are_told_apart(tmp_path, size):
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    for name, place in (("0", None), ("1", 0), ("2", size - 1)):
        changed = data.copy()
        if place is not None:
            changed[place] ^= 1
        (tmp_path / f"{name}.png").write_bytes(changed.tobytes())
    whole, first, last = keys(tmp_path)
    assert whole not in (first, last)
    assert UNREADABLE not in (whole, first, last)


def test_a_file_that_cannot_be_read_is_no_image_that_was_seen(folder):
    os.symlink(folder / "nowhere", folder / "a" / "3.png")
    assert keys(folder)[2] == UNREADABLE
    assert identify(folder).images == 4
