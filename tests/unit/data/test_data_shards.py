"""Tar shards in WebDataset's naming, written here with Python's tarfile."""

import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from ehm.config import DataConfig
from ehm.data import open_source
from ehm.errors import BrokenImage, DataError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def picture(value, kind="PNG"):
    file = io.BytesIO()
    Image.new("L", (5, 3), value).save(file, kind)
    return file.getvalue()


def write(path, members, mode="w", form=tarfile.PAX_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=form) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def numbered(first, count):
    for value in range(first, first + count):
        yield f"{value:06d}.cls", str(value % 3).encode()
        yield f"{value:06d}.json", json.dumps({"caption": "no label"}).encode()
        yield f"{value:06d}.png", picture(value)


@pytest.fixture
def three(tmp_path):
    for shard in range(3):
        write(tmp_path / "data" / f"set-{shard:06d}.tar", numbered(10 * shard, 4))
    return tmp_path / "data"


def opened(source, split="all", layout="auto"):
    return open_source(DataConfig(source=str(source), layout=layout), split)


def greys(source):
    return [source.load(index).getpixel((0, 0))[0] for index in range(len(source))]


def test_pattern_and_folder_are_the_same(three):
    by_pattern, by_folder = opened(three / "set-{000000..000002}.tar"), opened(three)
    assert greys(by_pattern) == greys(by_folder) == [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]
    assert by_folder.labels.tolist() == [value % 3 for value in greys(by_folder)]
    assert by_folder.labels.dtype == np.int64
    assert by_folder.classes == ("0", "1", "2")
    assert by_folder.name(5) == f"{three}/set-000001.tar/000011.png"
    assert greys(opened(three / "set-{1..2}.tar".replace("set-", "set-00000"))) == greys(by_folder)[4:]
    assert greys(opened(three / "set-000001.tar")) == [10, 11, 12, 13]


def test_several_ranges(tmp_path):
    for name in ("a/8-0", "a/9-0", "a/10-0", "a/10-1"):
        write(tmp_path / f"{name}.tar", [("0.png", picture(len(name)))])
    assert len(opened(tmp_path / "a" / "{8..9}-{0..0}.tar")) == 2
    assert len(opened(tmp_path / "a" / "{10..10}-{0..1}.tar")) == 2


def test_a_sample_is_a_run_of_equal_prefixes(tmp_path):
    members = [
        ("./dir/a.seg.png", picture(99)),
        ("./dir/a.JPG", picture(7, "JPEG")),
        ("./dir/._a.jpg", b"resource fork"),
        ("./dir/text.txt", b"no image"),
        ("./dir/b.webp", picture(8, "WEBP")),
        ("./dir/b.json", b'{"label": 5}'),
        ("other/b.png", picture(9)),
        ("x" * 150 + ".png", picture(10)),
    ]
    for number, form in enumerate((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)):
        source = opened(write(tmp_path / f"{number}.tar", members, form=form))
        assert greys(source) == pytest.approx([7, 8, 9, 10], abs=1)
        assert source.labels is None  # only one has one


def test_labels_from_json(tmp_path):
    members = [("a.png", picture(1)), ("a.json", b'{"label": 4}'), ("b.json", b"2"), ("b.png", picture(2))]
    assert opened(write(tmp_path / "s.tar", members)).labels.tolist() == [4, 2]
    with pytest.raises(DataError, match=r"t\.tar/a\.cls is neither a class number"):
        opened(write(tmp_path / "t.tar", [("a.cls", b"cat"), ("a.png", picture(1))]))
    # the number of an image: the names of so many classes would fill the memory
    with pytest.raises(DataError, match=r"u\.tar/a\.cls: 1000123456 is no number of a class"):
        opened(write(tmp_path / "u.tar", [("a.cls", b"1000123456"), ("a.png", picture(1))]))


def test_train_and_val_folders(tmp_path):
    write(tmp_path / "train" / "0.tar", numbered(0, 4))
    write(tmp_path / "val" / "0.tar", numbered(51, 2))
    assert greys(opened(tmp_path, "val")) == [51, 52]
    assert opened(tmp_path, "val").labels.tolist() == [0, 1]
    assert opened(tmp_path, "val").classes == opened(tmp_path, "train").classes == ("0", "1", "2")
    assert greys(opened(tmp_path, "train")) == [0, 1, 2, 3]
    assert (opened(tmp_path, "val").split, len(opened(tmp_path))) == ("val", 6)


def test_no_validation_part(three):
    for source in (three, three / "set-{000000..000002}.tar"):
        assert opened(source, "train").split == "all"
        with pytest.raises(DataError, match="no validation part"):
            opened(source, "val")


def test_the_index_is_kept_until_the_shard_changes(three, home, monkeypatch):
    before = opened(three)
    assert len(list((home / ".cache" / "ehm").iterdir())) == 3
    read, real = [], tarfile.open

    def recorded(*rest, **named):
        path = named["fileobj"].name if "fileobj" in named else rest[0]
        read.append(os.path.basename(path))
        return real(*rest, **named)

    monkeypatch.setattr(tarfile, "open", recorded)
    again = opened(three)
    assert read == []
    assert greys(again) == greys(before)
    assert again.labels.tolist() == before.labels.tolist()
    write(three / "set-000001.tar", numbered(40, 2))
    read.clear()
    assert greys(opened(three))[4:6] == [40, 41]
    assert read == ["set-000001.tar"]
    for file in (home / ".cache" / "ehm").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    assert len(opened(three)) == 10


def test_a_home_that_cannot_be_written(three, home):
    home.write_text("not a folder")
    assert len(opened(three)) == 12


def test_a_broken_image_names_shard_and_member(tmp_path):
    source = opened(write(tmp_path / "s.tar", [("a.png", picture(1)[:40]), ("b.png", picture(2))]))
    with pytest.raises(BrokenImage, match=r"s\.tar/a\.png: "):
        source.load(0)
    assert source.load(1).size == (5, 3)
    (tmp_path / "s.tar").unlink()
    with pytest.raises(BrokenImage, match=r"s\.tar/b\.png: No such file"):
        source.load(1)


def test_bad_shards_are_one_sentence(tmp_path, three):
    (three / "set-000002.tar").unlink()
    with pytest.raises(DataError, match=r"cannot read shard .*set-000002\.tar: No such file"):
        opened(three / "set-{000000..000002}.tar")
    whole = (three / "set-000001.tar").read_bytes()
    (three / "set-000001.tar").write_bytes(whole[:5000])
    with pytest.raises(DataError, match=r"set-000001\.tar is not a complete"):
        opened(three)
    (tmp_path / "page.tar").write_text("<html>" * 200)
    with pytest.raises(DataError, match=r"page\.tar is not a complete"):
        opened(tmp_path / "page.tar")
    write(tmp_path / "packed.tar", numbered(0, 2), mode="w:gz")
    with pytest.raises(DataError, match=r"packed\.tar is not a complete uncompressed tar"):
        opened(tmp_path / "packed.tar")
    write(tmp_path / "none.tar", [("a.txt", b"")])
    with pytest.raises(DataError, match="no images in 1 tar files"):
        opened(tmp_path / "none.tar")
    with pytest.raises(DataError, match=r"the range \{000002\.\.000000\} is empty.*: \{000000\.\.000002\}"):
        opened(three / "set-{000002..000000}.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.tar files in .*empty"):
        opened(tmp_path / "empty", layout="shards")


def test_a_store_with_two_folders_of_one_part_is_refused(tmp_path):
    for name in ("2019/train", "2020/train", "2020/val"):
        write(tmp_path / "set" / name / "0.tar", numbered(0, 2))
    with pytest.raises(DataError, match=r"holds .*/2019/train and .*/2020/train, of which only one can be") as raised:
        opened(f"file://{tmp_path}/set")
    assert len(opened(str(raised.value).rpartition("data.source=")[2], "train")) == 6


def test_a_store_with_parts_and_other_folders_names_a_pattern_that_reads_all(tmp_path):
    for name in ("train", "val", "more"):
        write(tmp_path / "set" / name / "0.tar", numbered(0, 2))
    with pytest.raises(DataError, match=r"holds parts \(train/, val/\) and other folders \(more/\)") as raised:
        opened(f"file://{tmp_path}/set")
    assert len(opened(str(raised.value).rpartition("data.source=")[2], "train")) == 6


def test_a_store_is_read_without_a_cache_that_can_be_written(three):
    (three.parent / "file").touch()
    config = DataConfig(source=f"file://{three}", cache_folder=str(three.parent / "file" / "cache"))
    assert greys(open_source(config)) == greys(opened(three))


def test_travels_to_workers(three):
    source = opened(three)
    assert greys(pickle.loads(pickle.dumps(source))) == greys(source)
