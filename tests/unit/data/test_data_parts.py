"""Data sets that are divided into parts: every usual spelling is known, and what might be something else is refused."""

import re
import tarfile
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from ehm.config import DataConfig, SegmentationData
from ehm.data import open_source
from ehm.data.sources.coco import read_coco
from ehm.data.sources.pairs import open_pairs
from ehm.data.sources.parts import name_part
from ehm.errors import DataError
from ehm.tasks.retrieval.benchmarks import open_benchmark


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def put(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name)
    return root


def put_classes(root, *parts, classes=("cat", "dog"), each=2):
    return put(root, *(f"{part}/{name}/{part}{n}.png" for part in parts for name in classes for n in range(each)))


def opened(root, split="train", layout="auto"):
    return open_source(DataConfig(source=str(root), layout=layout), split)


def names(source):
    return [source.name(index) for index in range(len(source))]


@pytest.mark.parametrize(
    ("folder", "part"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("TRAIN2017", "train"),
        ("val", "val"),
        ("valid", "val"),
        ("Validation", "val"),
        ("dev", "val"),
        ("val_2014", "val"),
        ("test", "test"),
        ("Testing", "test"),
        ("trains", None),
        ("test1", None),
        ("contest", None),
        ("2017", None),
    ],
)
def test_names_of_parts(folder, part):
    assert name_part(folder) == part


@pytest.mark.parametrize(
    "parts",
    [
        ("train", "valid", "test"),
        ("train", "validation"),
        ("Train", "Val"),
        ("training", "validation", "testing"),
        ("train", "dev", "test"),
        ("train2017", "val2017", "test2017"),
    ],
)
def test_parts_are_no_classes_and_only_the_training_part_is_trained_on(tmp_path, parts):
    put_classes(tmp_path, *parts)
    train, val = opened(tmp_path), opened(tmp_path, "val")
    assert train.classes == val.classes == ("cat", "dog")
    assert (train.split, val.split) == ("train", "val")
    assert {name.split("/")[-3] for name in names(train)} == {parts[0]}
    assert {name.split("/")[-3] for name in names(val)} == {parts[1]}
    assert {name.split("/")[-3] for name in names(opened(tmp_path, "all"))} == set(parts[:2])
    assert train.notes[0] == f"folder with parts {', '.join(parts)}; 2 classes"
    assert train.notes[1].startswith(f"images: {', '.join(f'4 in {part}/' for part in parts)}")
    assert ("is read only if data.source names it" in train.notes[1]) == (len(parts) == 3)


def test_a_set_without_a_validation_part_is_its_training_part(tmp_path):
    put_classes(tmp_path, "train", "test")
    source = opened(tmp_path)
    assert (source.split, source.classes, len(source)) == ("all", ("cat", "dog"), 4)
    assert not any("/test/" in name for name in names(source))
    with pytest.raises(DataError, match="no validation part"):
        opened(tmp_path, "val")
    assert len(opened(tmp_path / "test")) == 4  # asked for by name


def test_folders_beside_the_parts_are_counted(tmp_path):
    put_classes(tmp_path, "train", "val", "extra")
    put(tmp_path, "cover.png")
    source = opened(tmp_path)
    assert (source.classes, len(source)) == (("cat", "dog"), 4)
    assert "5 beside the parts (extra/cat/extra0.png, extra/cat/extra1.png, extra/dog/extra0.png, …)" in source.notes[2]


def test_parts_of_the_only_folder(tmp_path):
    put_classes(tmp_path / "images", "training", "validation")
    source = opened(tmp_path)
    assert (source.classes, len(source)) == (("cat", "dog"), 4)
    assert source.notes[0] == "folder images/ with parts training, validation; 2 classes"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["train/1.png", "val/2.png", "bus/3.png"], "parts (train/, val/ without bus/) and classes (bus, train, val)"),
        (["train/cat/1.png", "train/dog/1.png", "bus/3.png"], "parts (train/ without bus/) and classes (bus, train)"),
        (["cat/1.png", "dog/1.png", "test/3.png"], "classes and parts: test/ may be a class as cat/, dog/ are"),
    ],
)
def test_what_may_be_parts_or_classes_is_refused_until_said(tmp_path, files, words):
    put(tmp_path, *files)
    with pytest.raises(DataError, match=re.escape(words)) as raised:
        opened(tmp_path)
    assert "data.layout=classes" in str(raised.value)
    folders = sorted({file.split("/")[0] for file in files})
    assert opened(tmp_path, layout="classes").classes == tuple(folders)
    if "train" in folders:
        assert "data.layout=parts" in str(raised.value)
        assert {name.split("/")[len(tmp_path.parts)] for name in names(opened(tmp_path, layout="parts"))} == {"train"}


def test_folders_that_mean_one_part_are_refused(tmp_path):
    put_classes(tmp_path, "train", "val", "valid")
    with pytest.raises(DataError, match="val/ and valid/ both look like the validation part"):
        opened(tmp_path)


def test_parts_without_a_training_part_are_refused(tmp_path):
    put_classes(tmp_path, "valid", "test")
    with pytest.raises(DataError, match=r"has valid/, test/ and no part to train on .* data.source=.*/valid"):
        opened(tmp_path)
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match=r"data.layout=parts needs a folder train/"):
        opened(put(tmp_path / "other", "cat/1.png"), layout="parts")


def test_images_with_their_masks_are_no_classes(tmp_path):
    put(tmp_path, "train/images/1.png", "train/masks/1.png", "val/images/2.png", "val/masks/2.png")
    with pytest.raises(
        DataError, match=r"images with their masks .* data.source=.*train/images takes the images alone"
    ):
        opened(tmp_path)
    assert len(opened(tmp_path / "train" / "images")) == 1


def test_imagenet_with_other_spellings(tmp_path):
    put(tmp_path, *(f"training/n0144000{number}/{number}.png" for number in range(2)))
    put(tmp_path, "validation/n01440001/1.png", "test/x.png", "training/loose.png")
    source = opened(tmp_path)
    assert source.labels.tolist() == [0, 1]
    assert source.notes[0] == "ImageNet with parts training, validation, test; 2 classes"
    assert "1 beside the class folders (training/loose.png)" in source.notes[2]
    assert opened(tmp_path, "val").labels.tolist() == [1]


def test_a_benchmark_with_parts_is_refused(tmp_path):
    put_classes(tmp_path, "train", "val")
    with pytest.raises(DataError, match=r"benchmark .*: train/ is named like a part .*benchmark=.*/train"):
        open_benchmark(str(tmp_path))
    assert len(open_benchmark(str(tmp_path / "val")).queries) == 4


def write_tar(path, *members):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    with tarfile.open(path, "w") as tar:
        for member in members:
            info = tarfile.TarInfo(member)
            info.size = len(picture.getvalue())
            tar.addfile(info, BytesIO(picture.getvalue()))


@pytest.mark.parametrize("place", ["{part}/0.tar", "set-{part}-0.tar"])
def test_shards_of_parts(tmp_path, place):
    for part in ("train", "valid", "test"):
        write_tar(tmp_path / place.format(part=part), f"{part}.png")
    assert [name.rpartition("/")[2] for name in names(opened(tmp_path))] == ["train.png"]
    assert [name.rpartition("/")[2] for name in names(opened(tmp_path, "val"))] == ["valid.png"]
    assert "with parts train (1), val (1), test (1); no classes" in opened(tmp_path).notes[0]
    assert "1 of the test part" in opened(tmp_path).notes[1]


def test_shards_of_which_some_are_named_like_parts_are_refused(tmp_path):
    write_tar(tmp_path / "set-0.tar", "a.png")
    write_tar(tmp_path / "set-val-0.tar", "b.png")
    with pytest.raises(DataError, match=r"set-val-0.tar is named like a part"):
        opened(tmp_path)
    assert len(opened(tmp_path / "set-0.tar")) == 1


def test_a_folder_that_fits_two_layouts_names_both(tmp_path):
    put_classes(tmp_path, "cat", "dog", classes=("a",))
    write_tar(tmp_path / "backup.tar", "a.png", "b.png")
    with pytest.raises(
        DataError, match=r"fits 2 layouts: shards .* and folder .* data.layout=shards or data.layout=fol"
    ):
        opened(tmp_path)
    assert len(opened(tmp_path, layout="shards")) == 2
    source = opened(tmp_path, layout="folder")
    assert (len(source), source.classes) == (4, ("cat", "dog"))


def test_a_table_of_another_set_is_not_that_of_landmarks(tmp_path):
    put_classes(tmp_path, "train", "test")
    (tmp_path / "train.csv").write_text("id,label\n1,cat\n")
    assert opened(tmp_path).classes == ("cat", "dog")
    (tmp_path / "train.csv").write_text("id,landmark_id\nabcdef,7\n")  # Kaggle's, without addresses
    put(tmp_path, "train/a/b/c/abcdef.png")
    (tmp_path / "train/a/b/c/abcdef.png").rename(tmp_path / "train/a/b/c/abcdef.jpg")
    source = opened(tmp_path)
    assert (source.classes, source.notes[0]) == (("7",), "GLDv2 by train.csv; 1 class")
    assert "4 not named in train.csv (train/cat/train0.png" in source.notes[1]


def put_pairs(root, *places, values=(0, 1)):
    for images, masks in places:
        for folder in (images, masks):
            (root / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 1)).save(root / images / "a.jpg")
        Image.fromarray(np.array([values], np.uint8)).save(root / masks / "a.png")
    return SegmentationData(source=str(root), workers=0)


@pytest.mark.parametrize(
    "parts", [("train", "valid", "test"), ("Training", "Validation", "Testing"), ("train", "dev", "test")]
)
@pytest.mark.parametrize("inside", [True, False])
def test_pairs_in_parts(tmp_path, parts, inside):
    places = [(f"{p}/images", f"{p}/masks") if inside else (f"images/{p}", f"masks/{p}") for p in parts]
    config = put_pairs(tmp_path, *places)
    train, val = open_pairs(config, "train"), open_pairs(config, "val")
    assert [len(source) for source in (train, val, open_pairs(config, "all"))] == [1, 1, 2]
    assert (parts[0] in train.name(0), parts[1] in val.name(0)) == (True, True)
    assert train.notes[0] == f"images and masks with parts {', '.join(parts)}; 2 classes"
    assert "1 in the test part" in train.notes[1]


def test_pairs_without_a_validation_part_and_images_without_masks(tmp_path):
    config = put_pairs(tmp_path, ("images/train", "masks/train"))
    put(tmp_path, "images/test/1.png", "images/test/2.png", "masks/train/alone.png")
    source = open_pairs(config, "train")
    assert (source.split, len(source)) == ("all", 1)
    assert "2 without a folder of masks (images/test/1.png, images/test/2.png)" in source.notes[1]
    assert "1 of masks without an image (masks/train/alone.png)" in source.notes[1]


def test_two_arrangements_of_pairs_are_refused(tmp_path):
    config = put_pairs(tmp_path, ("images", "masks"), ("images", "annotations"))
    with pytest.raises(DataError, match=r"two arrangements .*: images with masks, and images with annotations"):
        open_pairs(config)


def test_own_classes_in_folders_named_like_those_of_ade20k(tmp_path):
    config = put_pairs(tmp_path, ("images/training", "annotations/training"))
    (tmp_path / "classes.txt").write_text("background\nscratch\n")
    source = open_pairs(config, "train")
    assert (source.classes, source.zero_ignored) == (("background", "scratch"), False)
    (tmp_path / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n")
    with pytest.raises(DataError, match=r"fits two layouts: ade20k \(objectInfo150.txt\) and pairs \(classes.txt\)"):
        open_pairs(config, "train")
    assert open_pairs(config.model_copy(update={"layout": "pairs"}), "train").classes == ("background", "scratch")
    assert len(open_pairs(config.model_copy(update={"layout": "ade20k"}), "train").classes) == 150


def put_coco(root, name, folder=None):
    image = {"id": 1, "file_name": "a.png", "height": 4, "width": 4}
    put(root, f"{folder or name}/a.png", f"{folder or name}/other.png")
    (root / "annotations").mkdir(exist_ok=True)
    file = root / "annotations" / f"instances_{name}.json" if folder is None else root / "instances.json"
    categories = [{"id": 1, "name": "cat"}]
    file.write_text(str({"images": [image], "annotations": [], "categories": categories}).replace("'", '"'))


def test_coco_in_parts_of_any_year_and_spelling(tmp_path):
    put_coco(tmp_path, "training")
    put_coco(tmp_path, "valid")
    train, val = read_coco(str(tmp_path), "train"), read_coco(str(tmp_path), "val")
    assert (train.split, "training" in train.name(0)) == ("train", True)
    assert (val.split, "valid" in val.name(0)) == ("val", True)
    assert train.notes[0] == "COCO's format by annotations/instances_training.json with parts training, valid; 1 class"
    assert train.notes[1] == "not used: 1 not named in instances_training.json (other.png)"
    put_coco(tmp_path, "train2014")
    with pytest.raises(DataError, match=r"fits 2 layouts: coco, coco2014; choose with data.layout=coco or"):
        read_coco(str(tmp_path), "train")
    assert "train2014" in read_coco(str(tmp_path), "train", layout="coco2014").name(0)
    put_coco(tmp_path, "", folder="images")
    assert "images" in read_coco(str(tmp_path), "train", layout="instances").name(0)
