"""COCO's format on disk: what is read, what is refused, and how it becomes batches."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as tools

from ehm.data import Loader
from ehm.data.instances import Instances, MirrorTransform, mirror
from ehm.data.sources.coco import read_coco
from ehm.errors import BrokenImage, DataError

HEIGHT, WIDTH = 40, 60
CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}]


def rectangle(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


def painted(left, top, right, bottom):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def packed(mask):
    code = tools.encode(np.asfortranarray(mask))
    return {"size": code["size"], "counts": code["counts"].decode()}


def runs(mask):
    """A run-length code by hand: lengths of runs of 0 and 1, down the columns."""
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
    return {"size": [HEIGHT, WIDTH], "counts": np.diff(np.concatenate([[0], ends])).tolist()}


def annotation(number, image, box, segmentation, category=1, **more):
    left, top, right, bottom = box
    more = {"iscrowd": 0, **more}
    bbox = [left, top, right - left, bottom - top]
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, "segmentation": segmentation} | more


OBJECTS = [
    annotation(1, 7, (10, 5, 30, 25), rectangle(10, 5, 30, 25)),
    annotation(2, 7, (0, 0, 8, 8), packed(painted(0, 0, 8, 8)), category=90),
    annotation(3, 7, (40, 20, 60, 40), runs(painted(40, 20, 60, 40)), category=90),
    annotation(4, 7, (0, 0, 60, 40), runs(painted(0, 0, 60, 40)), iscrowd=1),
    annotation(5, 9, (50, 30, 70, 45), rectangle(50, 30, 60, 40)),  # reaches beyond the image
    annotation(6, 9, (20, 10, 20, 30), rectangle(20, 10, 20, 30)),  # no width
    annotation(7, 9, (80, 10, 90, 30), rectangle(20, 10, 22, 30)),  # outside
]


@pytest.fixture
def folder(tmp_path):
    """Write images and annotations, as COCO's year has them or otherwise."""

    def write(objects=OBJECTS, file="annotations/instances_train2017.json", images="train2017", count=3):
        entries = []
        for number in range(count):
            name = f"{number:012d}.jpg"
            path = tmp_path / images / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path, quality=95)
            entries.append({"id": (9, 7, 11)[number] if number < 3 else 20 + number, "file_name": name})
            entries[-1] |= {"height": HEIGHT, "width": WIDTH}
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(json.dumps({"images": entries, "annotations": objects, "categories": CATEGORIES}))
        return str(tmp_path)

    return write


@pytest.mark.parametrize("year", ["2017", ""])
def test_objects_are_as_they_were_annotated(folder, year):
    source = read_coco(folder(file=f"annotations/instances_train{year}.json", images=f"train{year}"), "train")
    assert (source.split, source.classes, len(source)) == ("all", ("person", "toothbrush"), 3)
    image, objects = source.load(0)  # images are in the order of their ids
    assert source.name(0).endswith("000000000001.jpg")
    assert (image.shape, image.dtype) == ((HEIGHT, WIDTH, 3), np.uint8)
    np.testing.assert_array_equal(objects.boxes, [[10, 5, 30, 25], [0, 0, 8, 8], [40, 20, 60, 40]])
    np.testing.assert_array_equal(objects.labels, [0, 1, 1])
    for mask, box in zip(objects.masks, objects.boxes.astype(int), strict=True):
        np.testing.assert_array_equal(mask, painted(*box).astype(bool))
    assert not source.load(2)[1].boxes.size


def test_boxes_are_cut_at_the_border_and_those_without_area_are_named_and_left_out(folder):
    source = read_coco(folder(), "train")
    _, objects = source.load(1)
    np.testing.assert_array_equal(objects.boxes, [[50, 30, 60, 40]])
    assert objects.masks.shape == (1, HEIGHT, WIDTH)
    assert [text.partition(":")[0] for text in source.unusable] == [
        "annotation 6 of 000000000000.jpg",
        "annotation 7 of 000000000000.jpg",
    ]
    assert len(source.annotations[1]) == 3  # which still count in the measurement


def test_one_file_beside_a_folder_of_images_has_no_parts(folder):
    root = folder(file="instances.json", images="images")
    assert read_coco(root, "train").split == "all"
    with pytest.raises(DataError, match="no validation part"):
        read_coco(root, "val")


def test_what_is_not_there_is_said(folder, tmp_path):
    with pytest.raises(DataError, match=r"not COCO's layout; looked for annotations/instances_train2017\.json"):
        read_coco(str(tmp_path / "nowhere"), "train")
    root = folder()
    with pytest.raises(DataError, match="has no validation part of its own"):
        read_coco(root, "val")
    (tmp_path / "annotations" / "instances_train2017.json").write_text('{"images": []}')
    with pytest.raises(DataError, match="not annotations in COCO's format: 'categories' is missing"):
        read_coco(root, "train")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"category_id": 2}, "annotation 1 of 000000000001.jpg: no category has the id 2"),
        ({"image_id": 5}, "annotation 1: no image has the id 5"),
        ({"bbox": [1, 2, 3]}, r"bbox should be \[left, top, width, height\], not \[1, 2, 3\]"),
        ({"bbox": None}, "bbox should be"),
        ({"segmentation": []}, "has no segmentation; masks=false trains on boxes alone"),
        ({"segmentation": [[1, 2, 3, 4]]}, "three points at least"),
        ({"segmentation": {"size": [60, 40], "counts": [2400]}}, r"the size \[40, 60\]"),
        ({"segmentation": [["1", 2, 3, 4, 5, 6]]}, "three points at least"),
        ({"segmentation": {"size": [40, 60], "counts": [2399]}}, "no run-length code of 40 x 60 pixels"),
        ({"segmentation": {"size": [40, 60], "counts": "zzz"}}, "no run-length code of 40 x 60 pixels"),
        ({"image_id": [1]}, r"no image has the id \[1\]"),
        ({"category_id": [1]}, r"no category has the id \[1\]"),
    ],
)
def test_useless_annotations_are_named_by_file_before_anything_is_trained(folder, wrong, said):
    root = folder([OBJECTS[0] | wrong, *OBJECTS[1:]])
    with pytest.raises(DataError, match=said) as error:
        read_coco(root, "train")
    assert "instances_train2017.json: " in str(error.value)


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("categories", {"name": CATEGORIES[1]["name"]}, "two categories have the name"),
        ("categories", {"id": CATEGORIES[1]["id"]}, "two categories have the id"),
        ("images", {"id": 7}, "two images have the id 7"),
        ("images", {"height": 0}, "000000000000.jpg: height and width should be 1 at least"),
        ("images", {"height": 10**30}, "000000000000.jpg: height and width should be 1 at least, and below"),
        ("categories", {"name": 5}, "not annotations in COCO's format: a value is of the wrong kind"),
        ("images", {"file_name": 5}, "not annotations in COCO's format: a value is of the wrong kind"),
    ],
)
def test_what_cannot_be_told_apart_or_opened_is_named(folder, part, change, said):
    file = Path(folder()) / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    content[part][0] |= change
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=said):
        read_coco(str(file.parent.parent), "train")


def test_boxes_alone_are_enough_for_boxes_alone(folder):
    source = read_coco(
        folder([{k: v for k, v in each.items() if k != "segmentation"} for each in OBJECTS]), "train", False
    )
    _, objects = source.load(0)
    assert objects.masks is None
    assert len(objects.boxes) == 3


def test_an_image_that_is_missing_or_of_another_size_is_replaced_and_named(folder, tmp_path):
    source = read_coco(folder(), "train")
    (tmp_path / "train2017" / "000000000000.jpg").unlink()
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(tmp_path / "train2017" / "000000000002.jpg")
    options = {"batch_size": 3, "seed": 0, "shuffle": False, "drop_last": False}
    loader = Loader(source, MirrorTransform(), workers=0, **options)
    (batch,) = loader.batches(0, 1)
    assert batch.indices.tolist() == [0, 0, 0]
    assert len(batch.images) == batch.total == 3
    reasons = {name.rpartition("/")[2]: reason for name, reason in loader.unreadable.items()}
    assert reasons == {
        "000000000000.jpg": "No such file or directory",
        "000000000002.jpg": "has 60 x 41 pixels (width x height), and its annotations are for 60 x 40",
    }
    with pytest.raises(BrokenImage, match="60 x 41"):
        next(Loader(source, MirrorTransform(), workers=1, strict=True, subset=np.array([2]), **options).batches(0, 1))


def test_a_mirrored_box_is_that_of_the_mirrored_mask(folder):
    image, objects = read_coco(folder(), "train").load(0)
    flipped, found = mirror(image, objects)
    np.testing.assert_array_equal(flipped, np.asarray(Image.fromarray(image).transpose(Image.FLIP_LEFT_RIGHT)))
    for mask, box in zip(found.masks, found.boxes, strict=True):
        rows, columns = np.nonzero(mask)
        np.testing.assert_array_equal(box, [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    again, back = mirror(flipped, found)
    np.testing.assert_array_equal(again, image)
    np.testing.assert_array_equal(back.boxes, objects.boxes)


def same(one, other):
    assert one.indices.tolist() == other.indices.tolist()
    for (image, ours), (other_image, theirs) in zip(one.images, other.images, strict=True):
        np.testing.assert_array_equal(image, other_image)
        assert isinstance(ours, Instances)
        np.testing.assert_array_equal(ours.boxes, theirs.boxes)


def test_batches_depend_on_the_seed_and_the_step_alone(folder):
    source = read_coco(folder(count=11), "train")
    options = {"transform": MirrorTransform(flip=True), "batch_size": 4, "seed": 3, "shuffle": True, "drop_last": True}
    whole = list(Loader(source, workers=0, **options).batches(0, 8))
    assert len({tuple(batch.indices.tolist()) for batch in whole}) > 4
    for ahead, batch in zip(Loader(source, workers=2, **options).batches(0, 8), whole, strict=True):
        same(ahead, batch)
    for later, batch in zip(Loader(source, workers=2, **options).batches(5, 8), whole[5:], strict=True):
        same(later, batch)
    shares = []
    for rank in (0, 1):
        loader = Loader(source, workers=0, rank=rank, world_size=2, **options)
        shares.append(list(loader.batches(0, 8)))
    for first, second, batch in zip(*shares, whole, strict=True):
        assert [*first.indices, *second.indices] == batch.indices.tolist()
        assert (first.first, second.first, first.total) == (0, 2, 4)
        same(second, replace(batch, images=batch.images[2:], indices=batch.indices[2:]))


def test_an_iterator_that_is_given_up_ends_its_threads(folder):
    loader = Loader(
        read_coco(folder(count=9), "train"),
        MirrorTransform(),
        batch_size=1,
        seed=0,
        shuffle=True,
        drop_last=True,
        workers=2,
    )
    batches = loader.batches(0, 1000)
    next(batches)
    batches.close()
    loader.close()
