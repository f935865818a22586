"""Folders, ImageNet's layouts and ELPV are read as they lie on disk."""

import importlib.util
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ehm.config import DataConfig
from ehm.data import open_source
from ehm.errors import BrokenImage, DataError


def put(root, *names):
    """Write a tiny picture of its own grey value under each name."""
    kinds = {".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".png": "PNG"}
    for value, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), value).save(path, kinds[path.suffix.lower()])


def opened(root, split="all", layout="auto"):
    return open_source(DataConfig(source=str(root), layout=layout), split)


def names(source, root):
    return [os.path.relpath(source.name(index), root) for index in range(len(source))]


def labelled(source):
    return [source.classes[label] for label in source.labels]


def test_flat_folder_sorted_without_labels(tmp_path):
    put(tmp_path, "b.PNG", "a.jpg", "c.Tif", "10.png", "9.JPEG", ".hidden.png", ".cache/x.png")
    (tmp_path / "notes.txt").write_text("no picture")
    source = opened(tmp_path)
    assert names(source, tmp_path) == ["10.png", "9.JPEG", "a.jpg", "b.PNG", "c.Tif"]
    assert source.labels is None
    assert source.classes == ()
    assert source.split == "all"
    assert source.load(3).mode == "RGB"
    assert source.load(3).getpixel((0, 0)) == (0, 0, 0)
    assert source.load(0).getpixel((0, 0)) == (3, 3, 3)


def test_class_folders_give_labels_at_any_depth(tmp_path):
    put(tmp_path, "cat/2.png", "dog/deep/er/1.png", "cat/1.png", "dog/0.png", ".git/x.png")
    (tmp_path / "empty").mkdir()
    source = opened(tmp_path)
    assert names(source, tmp_path) == ["cat/1.png", "cat/2.png", "dog/0.png", "dog/deep/er/1.png"]
    assert source.classes == ("cat", "dog")
    assert labelled(source) == ["cat", "cat", "dog", "dog"]
    assert source.labels.dtype == np.int64


@pytest.mark.parametrize("files", [("only/1.png", "only/2.png"), ("cat/1.png", "dog/1.png", "loose.png")])
def test_one_folder_or_loose_images_are_no_classes(tmp_path, files):
    put(tmp_path, *files)
    assert len(opened(tmp_path)) == len(files)
    assert opened(tmp_path).labels is None


def test_links_are_followed_but_not_in_circles(tmp_path):
    put(tmp_path / "far", "1.png", "2.png")
    root = tmp_path / "data"
    put(root, "own.png")
    (root / "linked").symlink_to(tmp_path / "far")
    (root / "link.png").symlink_to(tmp_path / "far" / "1.png")
    (root / "loop").symlink_to(root)
    (root / "gone.png").symlink_to(tmp_path / "nowhere.png")
    source = opened(root)
    assert names(source, root) == ["gone.png", "link.png", "linked/1.png", "linked/2.png", "own.png"]
    with pytest.raises(BrokenImage, match=r"gone\.png: No such file"):
        source.load(0)


def test_train_and_val_folders(tmp_path):
    put(
        tmp_path, "train/cat/1.png", "train/dog/1.png", "train/emu/1.png", "val/dog/2.png", "val/emu/2.png", "doc/x.png"
    )
    train, val, both = (opened(tmp_path, split) for split in ("train", "val", "all"))
    assert names(train, tmp_path) == ["train/cat/1.png", "train/dog/1.png", "train/emu/1.png"]
    assert names(val, tmp_path) == ["val/dog/2.png", "val/emu/2.png"]
    assert labelled(val) == ["dog", "emu"]
    assert val.classes == train.classes == ("cat", "dog", "emu")
    assert names(both, tmp_path) == names(train, tmp_path) + names(val, tmp_path)
    assert (train.split, val.split, both.split) == ("train", "val", "all")
    put(tmp_path, "val/yak/1.png")
    with pytest.raises(DataError, match="yak, which the training part does not have"):
        opened(tmp_path, "val")


def test_train_alone_is_the_training_part(tmp_path):
    put(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/9.png")
    assert names(opened(tmp_path, "train"), tmp_path) == ["train/cat/1.png", "train/dog/1.png"]
    with pytest.raises(DataError, match="no validation part"):
        opened(tmp_path, "val")


def test_a_class_called_train_is_a_class(tmp_path):
    put(tmp_path, "bus/1.png", "train/1.png")
    assert opened(tmp_path, "train").classes == ("bus", "train")


def test_unlabelled_parts(tmp_path):
    put(tmp_path, "train/1.png", "train/2.png", "val/3.png")
    assert opened(tmp_path, "train").labels is None
    assert len(opened(tmp_path, "val")) == 1


@pytest.mark.parametrize("layout", ["auto", "folder"])
def test_nothing_there_is_one_sentence(tmp_path, layout):
    (tmp_path / "empty" / "er").mkdir(parents=True)
    (tmp_path / "empty" / "readme.md").write_text("")
    (tmp_path / "file.png").write_text("")
    cases = {
        "empty": r"no images in .*empty.*\.jpg",
        "missing": "no such folder",
        "file.png": "is a file, not a folder",
    }
    for name, message in cases.items():
        with pytest.raises(DataError, match=message) as raised:
            opened(tmp_path / name, layout=layout)
        assert str(tmp_path / name) in str(raised.value)
        assert "\n" not in str(raised.value)


IDS = ("n01440764", "n01443537", "n02102040")


def imagenet_train(root):
    put(root, *(f"train/{wnid}/{wnid}_{number}.JPEG" for wnid in reversed(IDS) for number in (18, 7)))


def test_imagenet_with_class_folders(tmp_path):
    imagenet_train(tmp_path)
    put(tmp_path, "val/n02102040/ILSVRC2012_val_00000001.JPEG", "val/n01440764/ILSVRC2012_val_00000002.JPEG")
    train, val = opened(tmp_path, "train"), opened(tmp_path, "val")
    assert train.classes == val.classes == IDS
    assert names(train, tmp_path)[:2] == ["train/n01440764/n01440764_18.JPEG", "train/n01440764/n01440764_7.JPEG"]
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert val.labels.tolist() == [0, 2]
    assert len(opened(tmp_path, "all")) == 8


KAGGLE = Path("ILSVRC", "Data", "CLS-LOC")
SOLUTION = """ImageId,PredictionString
ILSVRC2012_val_00000002,n01443537 85 1 499 272 
ILSVRC2012_val_00000001,n02102040 131 0 499 254 n02102040 1 2 3 4 
"""  # noqa: W291 (as published)


@pytest.mark.parametrize("given", [Path(), KAGGLE])
def test_imagenet_as_kaggle_has_it(tmp_path, given):
    imagenet_train(tmp_path / KAGGLE)
    put(tmp_path / KAGGLE, "val/ILSVRC2012_val_00000001.JPEG", "val/ILSVRC2012_val_00000002.JPEG", "test/x.JPEG")
    (tmp_path / "LOC_val_solution.csv").write_text(SOLUTION)
    val = opened(tmp_path / given, "val")
    assert val.labels.tolist() == [2, 1]
    assert val.classes == IDS
    assert opened(tmp_path / given, "all").labels.tolist() == [0, 0, 1, 1, 2, 2, 2, 1]


def test_imagenet_with_flat_val_and_no_table(tmp_path):
    imagenet_train(tmp_path)
    put(tmp_path, "val/ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(DataError, match="no class folders, and no LOC_val_solution"):
        opened(tmp_path, "val")
    assert len(opened(tmp_path, "train").labels) == 6
    assert len(opened(tmp_path, "all")) == 7
    assert opened(tmp_path, "all").labels is None


def test_imagenet_without_val(tmp_path):
    imagenet_train(tmp_path)
    assert len(opened(tmp_path, "all").labels) == 6
    with pytest.raises(DataError, match="no validation part"):
        opened(tmp_path, "val")


def test_layout_imagenet_elsewhere_says_what_it_looked_for(tmp_path):
    with pytest.raises(DataError, match="train/nXXXXXXXX/"):
        opened(tmp_path, layout="imagenet")


def test_elpv_is_what_the_package_ships():
    source = open_source(DataConfig())
    data = Path(importlib.util.find_spec("elpv_dataset").origin).parent / "data"
    table = np.genfromtxt(data / "labels.csv", dtype=None, encoding="utf-8", names=["path", "probability", "kind"])
    assert len(source) == 2624
    assert source.probability.tolist() == table["probability"].tolist()
    assert list(source.kind) == table["kind"].tolist()
    assert source.classes == ("functional", "defective")
    assert source.labels.tolist() == (table["probability"] > 0.5).astype(int).tolist()
    for index in (0, 1311, 2623):
        with Image.open(data / table["path"][index]) as image:
            assert (np.asarray(source.load(index)) == np.asarray(image)[..., None]).all()
    with pytest.raises(DataError, match="no validation part"):
        open_source(DataConfig(), "val")


def test_elpv_not_installed_names_the_command(monkeypatch):
    monkeypatch.setattr("ehm.data.sources.folder.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install elpv-dataset"):
        open_source(DataConfig())


def test_elpv_in_a_folder(tmp_path):
    put(tmp_path, "images/cell0001.png", "images/cell0002.png")
    (tmp_path / "labels.csv").write_text(
        "images/cell0001.png  0.3333333333333333  mono\nimages/cell0002.png 0.6666 poly\n"
    )
    source = opened(tmp_path, layout="elpv")
    assert source.labels.tolist() == [0, 1]
    assert source.load(1).getpixel((0, 0)) == (1, 1, 1)
    with pytest.raises(DataError, match=r"no labels\.csv"):
        opened(tmp_path / "images", layout="elpv")


def test_sources_travel_to_workers_and_keep_odd_names(tmp_path):
    odd = os.fsdecode("näme \udcff".encode("utf-8", "surrogateescape"))
    put(tmp_path, "a.png", f"{odd}.png", "日本.png")
    source = opened(tmp_path)
    copy = pickle.loads(pickle.dumps(source))
    assert [copy.name(index) for index in range(3)] == [str(tmp_path / name) for name in sorted(os.listdir(tmp_path))]
    assert copy.load(2).size == (4, 4)
