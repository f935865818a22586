"""Occurrences of classes are counted and reported, and a named class that never occurs is refused."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from PIL import Image

from ehm.backends.base import ALONE
from ehm.config import DataConfig, FinetuneConfig, SegmentationConfig
from ehm.data import open_source
from ehm.data.sources.coco import read_coco
from ehm.data.sources.mask_counts import MaskCounts, explain_255
from ehm.data.sources.pairs import check_pairs, open_pairs
from ehm.data.subset import Subset
from ehm.errors import DataError
from ehm.tasks.classes import count_labels, count_objects, describe_counts, describe_masks
from ehm.tasks.classification.task import Classification
from ehm.tasks.segmentation.task import Segmentation


def put(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name)


def labelled(root, **data):
    config = DataConfig(source=str(root), **data)
    return Subset(open_source(config, "train"), None, "all"), config


def test_images_of_each_class(tmp_path):
    put(tmp_path, "cat/1.png", "cat/2.png", "cat/3.png", "[dog]/1.png")
    assert count_labels(*labelled(tmp_path)) == ("images of each class to train on: [dog] 1, cat 3",)


def test_of_many_classes_the_rarest_are_named():
    classes = [f"c{number}" for number in range(20)]
    numbers = [1000 + 10 * number for number in range(20)]
    said = "1,000 to 1,190 (the rarest: c0 1,000, c1 1,010, c2 1,020, c3 1,030, c4 1,040)"
    assert describe_counts(classes, numbers) == said


def test_a_class_folder_without_images_is_refused(tmp_path):
    put(tmp_path, "cat/1.png", "dog/1.png")
    (tmp_path / "emu").mkdir()
    with pytest.raises(DataError, match=r"emu/ beside the classes without any image .*data.allow_empty_classes=true"):
        count_labels(*labelled(tmp_path))
    assert count_labels(*labelled(tmp_path, allow_empty_classes=True))


def test_a_class_that_is_held_out_whole_is_refused(tmp_path):
    put(tmp_path, *(f"cat/{number}.png" for number in range(4)), "dog/1.png")
    refused = 0
    for fold in range(5):
        data = {"source": str(tmp_path)}
        config = FinetuneConfig.model_validate({"data": data, "folds": 5, "fold": fold})
        train, val = Classification.split_images(config)
        if (val.labels == train.source.classes.index("dog")).any():
            refused += 1
            with pytest.raises(DataError, match=r"class dog without any image to train on .*is held out"):
                count_labels(train, config.data)
        else:
            count_labels(train, config.data)
    assert refused == 1


def masks(root, *values, classes=None):
    """A 2 x 2 mask for each of ``values``, which fill it in turn; counted as training does."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(exist_ok=True)
    for number, each in enumerate(values):
        Image.new("RGB", (2, 2)).save(root / "images" / f"{number}.png")
        Image.fromarray(np.resize(np.array(each, np.uint8), (2, 2))).save(root / "masks" / f"{number}.png")
    if classes:
        (root / "classes.txt").write_text("\n".join(classes))
    settings = {"data": {"source": str(root), "workers": 0}}
    config = SegmentationConfig.model_validate(settings)
    source = open_pairs(config.data, "train")
    counts = MaskCounts()
    assert check_pairs(source, range(len(source)), 0, counts) == []
    return Subset(source, None, "all"), counts, config


def test_pixels_of_each_class(tmp_path):
    part, counts, config = masks(tmp_path, [0, 0, 0, 1], [0, 0, 1, 255], classes=["ground", "crack"])
    assert describe_masks(part, counts, part.source.classes, config.data) == (
        "images with each class to train on, and its share of the pixels: ground 2, 62.50%; crack 2, 25.00%",
        "ignored: 12.50% of the pixels, in 1 images",
    )
    assert explain_255(counts, part.source.classes) == ""


def test_a_named_class_without_a_pixel_is_refused_and_a_numbered_one_is_said(tmp_path):
    part, counts, config = masks(tmp_path, [0, 2], classes=["ground", "crack", "dent"])
    with pytest.raises(DataError, match="class crack without any pixel to train on"):
        describe_masks(part, counts, part.source.classes, config.data)
    allowed = config.data.model_copy(update={"allow_empty_classes": True})
    said = describe_masks(part, counts, part.source.classes, allowed)
    assert "classes without a pixel to train on: 1 (crack)" in said
    (tmp_path / "classes.txt").unlink()
    part, counts, config = masks(tmp_path, [0, 2])
    said = describe_masks(part, counts, part.source.classes, config.data)
    assert said[1] == "classes without a pixel to train on: 1 (1)"


def test_classes_of_ade20k_may_be_missing(tmp_path):
    part, counts, config = masks(tmp_path, [0, 1])
    part = replace(part, source=replace(part.source, zero_ignored=True))
    classes = [f"class {number}" for number in range(150)]
    said = describe_masks(part, counts, classes, config.data)
    assert "classes without a pixel to train on: 148 (class 2, class 3" in said[1]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([[0, 255]], "1 of its masks hold the value 255 and none holds 1"),
        ([[0, 255], [0, 1], [0]], "1 of its masks hold 255, 1 others hold 1, and none holds both"),
        ([[0, 1, 255], [0, 255]], ""),
        ([[0, 1]], ""),
    ],
)
def test_masks_of_0_and_255(tmp_path, values, words):
    part, counts, _ = masks(tmp_path, *values, classes=["ground", "crack"])
    said = explain_255(counts, part.source.classes)
    assert said.startswith(words) if words else not said
    assert ("write crack as 1 instead of 255" in said) == bool(words)


def test_three_classes_may_ignore_255(tmp_path):
    part, counts, _ = masks(tmp_path, [0, 255], [2, 1], classes=["ground", "crack", "dent"])
    assert explain_255(counts, part.source.classes) == ""


class NoBackend:
    processes = ALONE


def test_segmentation_stops_before_anything_is_made(tmp_path):
    _, _, config = masks(tmp_path, *[[0, 255]] * 4, classes=["ground", "crack"])
    with pytest.raises(DataError, match=r"data.source .*: 4 of its masks hold the value 255"):
        Segmentation(config.model_copy(update={"folds": 2}), NoBackend())


def test_masks_of_0_and_255_without_names_are_explained(tmp_path):
    with pytest.raises(DataError, match="the values 0 and 255 only, and 255 is ignored; write the second class as 1"):
        masks(tmp_path, [0, 255])


def test_counts_travel_between_processes_and_add_up():
    import pickle

    first, second = MaskCounts(), MaskCounts()
    first.add(np.array([[0, 1], [255, 255]], np.uint8))
    second.add(np.array([[0, 0], [0, 2]], np.uint8))
    total = pickle.loads(pickle.dumps(first)).merge([second])
    assert (total.pixels[[0, 1, 2, 255]].tolist(), total.masks[[0, 1, 255]].tolist()) == ([4, 1, 1, 2], [2, 1, 1])
    assert total.with_one_and_255 == 1


def test_objects_of_each_class(tmp_path):
    put(tmp_path, "images/a.png", "images/b.png")
    images = [{"id": number, "file_name": f"{name}.png", "height": 4, "width": 4} for number, name in enumerate("ab")]
    box = partial(dict, bbox=[0, 0, 2, 2], iscrowd=0)
    objects = [box(id=1, image_id=0, category_id=1), box(id=2, image_id=0, category_id=1)]
    objects += [box(id=3, image_id=1, category_id=2), box(id=4, image_id=1, category_id=3, iscrowd=1)]
    categories = [{"id": number, "name": name} for number, name in enumerate(["cat", "cup", "tree"], 1)]
    content = {"images": images, "annotations": objects, "categories": categories}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    source, config = read_coco(str(tmp_path), "train", masks=False), DataConfig(source=str(tmp_path))
    with pytest.raises(DataError, match="class tree without any object to train on"):  # it has a crowd alone
        count_objects(Subset(source, None, "all"), config)
    allowed = config.model_copy(update={"allow_empty_classes": True})
    assert count_objects(Subset(source, np.array([0, 1]), "fold"), allowed) == (
        "objects of each class to train on: cat 2, cup 1, tree 0",
        "classes that never occur: 1 (tree)",
    )
