"""YOLO's text files, compared with the same objects in COCO's format, converted by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ehm.config import DetectionData
from ehm.data.sources.coco import read_annotations
from ehm.data.sources.detection_layouts import open_objects
from ehm.data.sources.identity import identify_source
from ehm.data.sources.yolo import find_label_file
from ehm.errors import DataError

SIZES = {"a.jpg": (60, 40), "b.jpg": (32, 48), "c.jpg": (20, 20)}
BOXES = {"a.jpg": [(1, 6, 4, 30, 24), (0, 0, 0, 12, 40)], "b.jpg": [(1, 8, 12, 16, 12)], "c.jpg": []}
"""The objects of each image: class, left, top, width and height in pixels."""
NAMES = ["cat", "cup"]


def write_images(folder, names=SIZES):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", SIZES[name], "gray").save(folder / name)


def write_labels(folder, polygons=False, names=BOXES):
    """Text files as YOLO has them; the image without objects has none."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        width, height = SIZES[name]
        lines = []
        for label, left, top, across, down in BOXES[name]:
            if polygons:
                corners = [(left, top), (left + across, top), (left + across, top + down), (left, top + down)]
                numbers = [value for x, y in corners for value in (x / width, y / height)]
            else:
                numbers = [(left + across / 2) / width, (top + down / 2) / height, across / width, down / height]
            lines.append(" ".join([str(label), *(f"{value:.9f}" for value in numbers)]))
        if lines:
            (folder / name).with_suffix(".txt").write_text("\n".join(lines) + "\n")


def convert_by_hand(folder, file, masks=False):
    """The same in COCO's format: the file, and the source that reads it."""
    images = []
    objects = []
    for number, (name, (width, height)) in enumerate(SIZES.items()):
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for label, left, top, across, down in BOXES[name]:
            right, bottom = left + across, top + down
            polygon = [left, top, right, top, right, bottom, left, bottom]
            box = [left, top, across, down]
            row = {"id": len(objects), "image_id": number, "category_id": label, "bbox": box, "segmentation": [polygon]}
            objects.append(row)
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES)]
    file.write_text(json.dumps({"images": images, "annotations": objects, "categories": categories}))
    return read_annotations(file, folder, "all", masks)


def open_yolo(source, split="train", masks=False, **values):
    return open_objects(DetectionData(source=str(source), workers=0, **values), split, masks)


@pytest.mark.parametrize("masks", [False, True])
def test_it_is_the_same_as_in_cocos_format(tmp_path, masks):
    write_images(tmp_path / "set" / "images")
    write_labels(tmp_path / "set" / "labels", polygons=masks)
    (tmp_path / "set" / "classes.txt").write_text("cat\ncup\n")
    found = open_yolo(tmp_path / "set", masks=masks)
    expected = convert_by_hand(tmp_path / "set" / "images", tmp_path / "coco.json", masks)
    assert (len(found), found.classes, found.split) == (3, expected.classes, "all")
    for index in range(3):
        image, objects = found.load(index)
        other_image, other = expected.load(index)
        assert np.array_equal(image, other_image)
        np.testing.assert_allclose(objects.boxes, other.boxes, atol=1e-5)
        assert objects.labels.tolist() == other.labels.tolist()
        if masks:
            assert np.array_equal(objects.masks, other.masks)
    assert found.notes == ("YOLO's format; 2 classes",)
    # an identity of the same images, whose labels change with any of them
    first = identify_source(found)
    assert first.files == identify_source(expected).files
    with (tmp_path / "set" / "labels" / "c.txt").open("w") as file:
        file.write("0 0.5 0.5 1 1" if not masks else "0 0 0 1 0 1 1")
    assert identify_source(open_yolo(tmp_path / "set", masks=masks)).labels != first.labels


def test_every_layout_is_found(tmp_path):
    below = tmp_path / "below"
    above = tmp_path / "above"
    for part, names in (("train", ["a.jpg", "b.jpg"]), ("valid", ["c.jpg"]), ("test", ["c.jpg"])):
        write_images(below / "images" / part, names)
        write_labels(below / "labels" / part, names=names)
        write_images(above / part / "images", names)
        write_labels(above / part / "labels", names=names)
    # as Roboflow writes it, and as Ultralytics does, with a mapping and a file of lines
    (above / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'cup']\n")
    listed = tmp_path / "listed.yaml"
    listed.write_text("path: above\ntrain: [train/images]\nval: val.txt\nnames: {0: cat, 1: cup}\n")
    (above / "val.txt").write_text("./valid/images/c.jpg\n\n")
    for source, names in ((below, ("0", "1")), (above, tuple(NAMES)), (listed, tuple(NAMES))):
        train = open_yolo(source)
        assert [name.rpartition("/")[2] for name in map(train.name, range(2))] == ["a.jpg", "b.jpg"]
        assert train.split == "train"
        assert train.classes == names
        assert [len(objects) for objects in train.annotations] == [2, 1]
        assert len(open_yolo(source, "val")) == 1
        assert len(open_yolo(source, "all")) == 3
    assert "images: 2 in train/, 1 in val/, 1 in test/" in open_yolo(below).notes[1]
    assert find_label_file(below / "images" / "train" / "a.jpg") == below / "labels" / "train" / "a.txt"


def test_boxes_refer_to_the_image_as_it_is_seen(tmp_path):
    (tmp_path / "images").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # stored 60 x 40, seen 40 x 60
    Image.new("RGB", (60, 40)).save(tmp_path / "images" / "a.jpg", exif=exif)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.25 0.5 0.5 1\n")
    image, objects = open_yolo(tmp_path).load(0)
    assert image.shape == (60, 40, 3)
    assert objects.boxes.tolist() == [[0, 0, 20, 60]]
    image, objects = open_yolo(tmp_path, annotated="stored").load(0)
    assert image.shape == (60, 40, 3)
    assert objects.boxes.tolist() == [[0, 0, 40, 30]]


@pytest.mark.parametrize(
    ("text", "masks", "message"),
    [
        ("0 0.5 0.5 0.2", False, "line 1: expected a class, and four numbers of a box or x y of three points"),
        ("0 0.5 0.5 0.2 0.2\n7 0.5 0.5 0.2 0.2", False, "line 2: class 7 has no name; there are 2, from 0 to 1"),
        ("cat 0.5 0.5 0.2 0.2", False, "line 1: cat 0.5 0.5 0.2 0.2 is no object"),
        ("0 30 20 10 10", False, "line 1: 0 30 20 10 10: coordinates should be shares of the image"),
        ("0 0.5 0.5 0.2 0.2", True, "line 1: is a box and has no mask; masks=false trains on boxes alone"),
    ],
)
def test_what_is_wrong_is_said_with_the_line(tmp_path, text, masks, message):
    write_images(tmp_path / "images")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text(text)
    (tmp_path / "classes.txt").write_text("cat\ncup\n")
    with pytest.raises(DataError) as raised:
        open_yolo(tmp_path, masks=masks)
    assert message in str(raised.value)
    assert str(tmp_path / "labels" / "a.txt") in str(raised.value)


def test_a_number_that_can_be_no_class_is_refused_where_nothing_names_the_classes(tmp_path):
    """The names of a billion classes would fill the memory."""
    write_images(tmp_path / "images")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("1000000000 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DataError, match=r"a\.txt: line 1: 1,000,000,000 is no number of a class"):
        open_yolo(tmp_path)


def test_descriptions_that_cannot_be_followed(tmp_path):
    file = tmp_path / "data.yaml"
    write_images(tmp_path / "images")
    for text, message in (
        ("names: [a]\n", "names no images to train on"),
        ("train: nowhere\nnames: [a]\n", "nowhere is not there"),
        ("train: images\nnames: [a, a]\n", "names the class a twice"),
        ("train: images\nnames: {1: a}\n", "names should be a list of classes"),
        ("train: images\nnames: {0: a, b: c}\n", "names should be a list of classes"),
        ("train: images\nnames: [a]\nkpt_shape: [17, 3]\n", "describes key points"),
        ("train: images\n", "none of its label files has an object"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            open_yolo(tmp_path)
    (tmp_path / "instances.json").write_text("{}")
    with pytest.raises(DataError, match="fits 2 layouts: COCO's annotations and YOLO's label files"):
        open_yolo(tmp_path)


def test_damaged_images_and_empty_boxes_are_counted(tmp_path):
    write_images(tmp_path / "images")
    (tmp_path / "images" / "b.jpg").write_bytes(b"no image")
    write_labels(tmp_path / "labels")
    (tmp_path / "labels" / "c.txt").write_text("1 0.5 0.5 0 0.1\n")
    source = open_yolo(tmp_path)
    assert len(source) == 2
    assert "1 that cannot be read" in source.notes[-1]
    assert len(source.unusable) == 1
    assert source.list_trainable_objects(1) == []
    assert replace(source, masks=False).load(1)[1].boxes.shape == (0, 4)
