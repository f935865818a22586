"""Files that look like images or samples and are not read are counted, with the reason and the first names."""

import os
import tarfile
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from ehm.data.sources.folder import open_folder
from ehm.data.sources.identity import UNREADABLE, hash_images
from ehm.data.sources.inventory import Unused, is_sample_file
from ehm.data.sources.shards import open_shards
from ehm.data.sources.tar_index import split_member_name
from ehm.errors import BrokenImage, DataError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def png():
    file = BytesIO()
    Image.new("RGB", (3, 3)).save(file, "PNG")
    return file.getvalue()


def put(root, *names, content=None):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png() if content is None else content)
    return root


def test_hidden_files_and_other_formats_are_counted(tmp_path):
    put(tmp_path, "a.png", "b/c.png", ".d.png", ".cache/e.png", "b/._c.png", ".cache/notes.txt")
    put(tmp_path, "b/f.heic", "g.dng", "h.tar.gz", content=b"x")
    put(tmp_path, "readme.txt", "b/c.xml", "b/c.json", content=b"\xff\xd8\xff not opened")
    source = open_folder(str(tmp_path), "train")
    assert len(source) == 2
    assert source.notes[0] == "folder; no classes"
    assert source.notes[-1] == (
        "not used: 3 hidden, or in hidden folders (.cache/e.png, .d.png, b/._c.png); "
        "3 of a format that is not read (b/f.heic, g.dng, h.tar.gz)"
    )


@pytest.mark.parametrize(
    ("name", "content", "looks"),
    [
        ("IMG0001", b"\xff\xd8\xff\xe0", True),
        ("scan", b"II*\x00", True),
        ("photo.jpg~", b"\xff\xd8\xff\xe0", True),
        ("photo.jpg?size=large", b"\x89PNG\r\n\x1a\n", True),
        ("photo.png.1", b"RIFF\0\0\0\0WEBP", True),
        ("photo.jpg.txt", b"a caption", False),
        ("LICENSE", b"Apache", False),
        ("notes.txt", b"\xff\xd8\xff\xe0", False),
        ("scan.HEIC", b"", True),
        ("images.tar.zst", b"", True),
        ("volume.nii.gz", b"", True),
        ("log.gz", b"", False),
    ],
)
def test_what_looks_like_an_image(tmp_path, name, content, looks):
    (tmp_path / name).write_bytes(content)
    assert is_sample_file(tmp_path / name) is looks


def test_named_pipes_are_not_waited_for(tmp_path):
    put(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.png")
    source = open_folder(str(tmp_path), "train")
    assert [os.path.basename(source.name(number)) for number in range(len(source))] == ["a.png", "pipe.png"]
    with pytest.raises(BrokenImage, match=r"pipe\.png: a named pipe, and no file"):
        source.load(1)
    assert hash_images(source, np.arange(2), "content")[1] == UNREADABLE


def test_links_that_lead_to_themselves_are_no_folders(tmp_path):
    put(tmp_path, "train/a/a.png", "train/b/b.png", "val/a/c.png")
    for folder in (tmp_path, tmp_path / "train", tmp_path / "train/a"):
        (folder / "loop").symlink_to("loop")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "train/a/loop.png").symlink_to("loop.png")
    source = open_folder(str(tmp_path), "train")
    assert (len(source), source.classes) == (3, ("a", "b"))
    with pytest.raises(BrokenImage, match=r"train/a/loop\.png: Too many levels of symbolic links"):
        source.load(1)


def test_nothing_but_other_formats_says_so(tmp_path):
    put(tmp_path, "a.heic", content=b"x")
    with pytest.raises(DataError, match=r"no images in .*; not used: 1 of a format that is not read \(a\.heic\)"):
        open_folder(str(tmp_path), "train")


def test_class_folders_without_images_are_known(tmp_path):
    put(tmp_path, "cat/1.png", "dog/1.png")
    put(tmp_path, "emu/1.heic", "docs/readme.txt", content=b"x")
    (tmp_path / "fox" / "deep").mkdir(parents=True)
    source = open_folder(str(tmp_path), "train")
    assert (source.classes, source.empty_classes) == (("cat", "dog"), ("emu", "fox"))


def test_an_image_beside_folders_is_why_they_are_no_classes(tmp_path):
    put(tmp_path, "cat/1.png", "dog/1.png", "loose.png")
    source = open_folder(str(tmp_path), "train")
    assert (source.labels, len(source)) == (None, 3)
    assert source.notes[1] == "its folders are no classes, because loose.png lies beside them"


def test_names_are_printed_as_they_are_or_escaped():
    unused = Unused()
    unused.add("odd", os.fsdecode(b"n\xff.png"))
    unused.add("odd", "[red]\n.png")
    unused.add_all("odd", ["ä.png", "d.png"])
    assert unused.describe() == r"not used: 4 odd (n\udcff.png, [red]\n.png, ä.png, …)"
    assert not Unused()


def write_tar(path, *members, links=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name in members:
            data = b"3" if name.endswith(".cls") else png()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
        for name, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.LNKTYPE, target
            tar.addfile(info)
    return str(path.parent)


def opened(root):
    source = open_shards(root, "train")
    return [source.members[index] for index in range(len(source))], source.notes[-1]


@pytest.mark.parametrize(
    ("name", "key", "suffix"),  # as base_plus_ext of webdataset 1.0.2 has them
    [
        ("0001.jpg", "0001", "jpg"),
        ("dir/0001.cls", "dir/0001", "cls"),
        ("a.b/0001.seg.PNG", "a.b/0001", "seg.png"),
        ("IMG_1.2024.png", "IMG_1", "2024.png"),
        ("scan.001.png", "scan", "001.png"),
        ("./x/y.tar.gz", "./x/y", "tar.gz"),
    ],
)
def test_a_sample_is_named_up_to_the_first_dot(name, key, suffix):
    assert split_member_name(name) == (key, f".{suffix}")


def test_members_with_dots_in_their_names_are_read(tmp_path):
    members = [f"IMG_{n}.2024.png" if n % 2 else f"IMG_{n}.png" for n in range(6)]
    assert opened(write_tar(tmp_path / "a.tar", *members)) == (members, "1 tar shards; no classes")


def test_the_samples_are_those_of_webdataset(tmp_path):
    """group_by_keys of webdataset 1.0.2 gives a (jpg, seg.png), b (webp), IMG_1 (2024.png), s (left.png, right.png),
    c (cls), d (png) and c (png) of these."""
    members = ["a.seg.png", "a.JPG", "b.webp", "IMG_1.2024.png", "s.left.png", "s.right.png", "README", "c.cls"]
    members += ["d.png", "c.png", "__meta__/x.png", ".e.png"]
    root = write_tar(tmp_path / "data" / "a.tar", *members, links=[("f.png", "d.png")])
    names, note = opened(root)
    assert names == ["a.JPG", "b.webp", "IMG_1.2024.png", "d.png", "c.png"]
    assert "2 hidden, or in hidden folders (a.tar/__meta__/x.png, a.tar/.e.png)" in note
    assert "1 stored as links, without bytes (a.tar/f.png)" in note
    assert "1 beside the image of their sample (a.tar/a.seg.png)" in note
    assert "2 of samples with several images, none with a plain suffix" in note
    assert "(a.tar/s.left.png, a.tar/s.right.png)" in note
    assert "1 of samples without an image (a.tar/c.cls)" in note
    assert opened(root) == (names, note)  # from the index that was kept


def test_a_mask_does_not_take_the_place_of_a_missing_image(tmp_path):
    names, note = opened(write_tar(tmp_path / "a.tar", "a.png", "a.seg.png", "b.seg.png"))
    assert names == ["a.png"]
    assert "2 beside the image of their sample (a.tar/a.seg.png, a.tar/b.seg.png)" in note


def test_samples_of_several_images_alone_are_refused_with_the_reason(tmp_path):
    root = write_tar(tmp_path / "a.tar", *(f"scan.{n:03d}.png" for n in range(12)))
    with pytest.raises(DataError, match=r"no images in 1 tar files .*; not used: 12 of samples with several images"):
        open_shards(root, "train")


def test_what_lies_beside_shards_and_labels_that_some_lack(tmp_path):
    root = write_tar(tmp_path / "a.tar", "a.png", "a.cls", "b.png")
    write_tar(tmp_path / "deeper" / "b.tar", "c.png")
    put(tmp_path, "c.tgz", "d.png", ".e.tar")
    source = open_shards(root, "train")
    assert source.notes[1] == "labels are not used: 1 of 2 samples have one"
    assert source.notes[2] == (
        "not used: 1 hidden, or in hidden folders (.e.tar); 1 of a format that is not read (c.tgz); "
        "1 beside the tar files (d.png); 1 in other folders (deeper/b.tar)"
    )
