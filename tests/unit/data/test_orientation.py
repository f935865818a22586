"""Images that EXIF turns or mirrors: where boxes, polygons, run-length codes and mask files lie in what is seen.

A white rectangle on grey is where the annotation says, in all eight orientations, whichever pixels it was drawn on.
"""

import json
import struct
import warnings

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps
from pycocotools import mask as tools

from ehm.config import DetectionData, SegmentationData
from ehm.data.decoding.decode import decode_image, read_head
from ehm.data.decoding.orientation import turn_array, turn_boxes, turn_image
from ehm.data.sources.base import Names
from ehm.data.sources.coco import open_coco
from ehm.data.sources.masks import read_mask
from ehm.data.sources.pairs import check_pairs, open_pairs
from ehm.errors import BrokenImage, DataError
from ehm.tasks.retrieval.benchmarks import BenchmarkSource

ORIENTATIONS = range(1, 9)
BOX = (5, 4, 17, 22)
SIZES = [(40, 28), (30, 30)]


def stored(size, box=BOX):
    """Grey pixels (h, w, 3) of ``size`` = (width, height), white inside the box."""
    pixels = np.full((size[1], size[0], 3), 40, np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    return pixels


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def save(path, pixels, orientation):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, exif=exif(orientation))
    return path


def seen_by_pillow(pixels, orientation):
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_images_arrays_and_boxes_turn_as_pillow_turns_images(orientation, size):
    pixels = stored(size)
    expected = seen_by_pillow(pixels, orientation)
    np.testing.assert_array_equal(np.asarray(turn_image(Image.fromarray(pixels), orientation)), expected)
    np.testing.assert_array_equal(turn_array(pixels, orientation), expected)
    (box,) = turn_boxes(np.array([BOX]), size, orientation).tolist()
    rows, columns = np.nonzero(expected[..., 0] == 255)
    assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_size_in_the_head_is_that_of_the_decoded_image(orientation, suffix, tmp_path):
    path = save(tmp_path / f"a.{suffix}", stored((40, 28)), orientation)
    head = read_head(path)
    assert (head.size, head.orientation) == ((40, 28), orientation)
    image = decode_image(path)
    assert head.seen_size == image.size
    if suffix != "webp":  # which Pillow writes with losses
        np.testing.assert_array_equal(np.asarray(image), seen_by_pillow(stored((40, 28)), orientation))
        levels = np.arange(28 * 40).astype(np.uint8).reshape(28, 40)
        grey = save(tmp_path / f"grey.{suffix}", levels, orientation)
        np.testing.assert_array_equal(np.asarray(decode_image(grey))[..., 0], turn_array(levels, orientation))


def png_with_orientation_behind_its_pixels(path, pixels, orientation, pixels_damaged=False):
    """A PNG file whose EXIF chunk follows the pixels, which the specification allows (section 5.6)."""
    save(path, pixels, orientation)
    data = path.read_bytes()
    chunks, start = [], 8
    while start < len(data):
        stop = start + 12 + struct.unpack(">I", data[start : start + 4])[0]
        chunks.append(data[start:stop])
        start = stop
    (exif_chunk,) = [chunk for chunk in chunks if chunk[4:8] == b"eXIf"]
    chunks.remove(exif_chunk)
    chunks.insert(-1, exif_chunk)
    if pixels_damaged:
        chunks = [chunk[:8] + bytes(len(chunk) - 8) if chunk[4:8] == b"IDAT" else chunk for chunk in chunks]
    path.write_bytes(data[:8] + b"".join(chunks))
    return path


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_orientation_behind_the_pixels_of_a_png_is_found(orientation, tmp_path):
    path = png_with_orientation_behind_its_pixels(tmp_path / "a.png", stored((40, 28)), orientation)
    assert read_head(path).orientation == orientation
    np.testing.assert_array_equal(np.asarray(decode_image(path)), seen_by_pillow(stored((40, 28)), orientation))


def test_the_head_is_read_without_decoding_a_pixel(tmp_path, monkeypatch):
    path = png_with_orientation_behind_its_pixels(tmp_path / "a.png", stored((40, 28)), 6, pixels_damaged=True)
    loaded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: loaded.append(image))
    assert read_head(path).seen_size == (28, 40)
    truncated = tmp_path / "truncated.png"
    truncated.write_bytes(path.read_bytes()[:60])
    assert read_head(truncated).size == (40, 28)
    assert not loaded


def segmentations(size):
    """The box as a polygon, as a compressed run-length code and as an uncompressed one."""
    left, top, right, bottom = BOX
    mask = (stored(size)[..., 0] == 255).astype(np.uint8)
    code = tools.encode(np.asfortranarray(mask))
    flat = mask.T.ravel()
    counts = np.diff(np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1, [flat.size]])).tolist()
    return [
        [[left, top, right, top, right, bottom, left, bottom]],
        {"size": code["size"], "counts": code["counts"].decode()},
        {"size": [size[1], size[0]], "counts": counts},
    ]


def write_coco(root, size, orientation, drawn_on_seen=False, name="a.png"):
    """An image with three objects that are all its white rectangle, each with a mask of another kind."""
    pixels = stored(size) if not drawn_on_seen else np.ascontiguousarray(_inverse(stored(size), orientation))
    save(root / "images" / name, pixels, orientation)
    left, top, right, bottom = BOX
    objects = [
        {
            "id": n,
            "image_id": 1,
            "category_id": 1,
            "bbox": [left, top, right - left, bottom - top],
            "segmentation": code,
        }
        for n, code in enumerate(segmentations(size), 1)
    ]
    content = {
        "images": [{"id": 1, "file_name": name, "width": size[0], "height": size[1]}],
        "annotations": objects,
        "categories": [{"id": 1, "name": "thing"}],
    }
    (root / "instances.json").write_text(json.dumps(content))
    return DetectionData(source=str(root), workers=0)


def _inverse(seen, orientation):
    """The stored pixels of what is seen: the orientation that undoes one is itself, but for the two quarter turns."""
    return turn_array(seen, {6: 8, 8: 6}.get(orientation, orientation))


def all_white(image, objects):
    for box, mask in zip(objects.boxes.astype(int), objects.masks, strict=True):
        left, top, right, bottom = box.tolist()
        inside = np.zeros(image.shape[:2], bool)
        inside[top:bottom, left:right] = True
        np.testing.assert_array_equal(inside, image[..., 0] == 255)
        np.testing.assert_array_equal(mask, image[..., 0] == 255)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_cocos_objects_are_turned_with_the_stored_pixels(orientation, size, tmp_path):
    source = open_coco(write_coco(tmp_path, size, orientation), "train")
    image, objects = source.load(0)
    assert len(objects.boxes) == 3
    all_white(image, objects)
    record, annotations = source.turn_annotations(0)
    assert (record["width"], record["height"]) == (image.shape[1], image.shape[0])
    for each, box in zip(annotations, objects.boxes, strict=True):
        left, top, width, height = each["bbox"]
        assert box.tolist() == [left, top, left + width, top + height]
    if orientation != 1:
        for each, mask in zip(annotations, objects.masks, strict=True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools' way with NumPy
                np.testing.assert_array_equal(tools.decode(each["segmentation"]), mask)
    # sizes tell of a quarter turn of what is no square, and of nothing else
    told = orientation == 1 or (orientation > 4 and size[0] != size[1])
    assert ("data.annotated=upright" in " ".join(source.notes)) == (not told)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_cocos_objects_of_the_image_as_it_is_seen_stay_where_they_are(orientation, tmp_path):
    config = write_coco(tmp_path, (40, 28), orientation, drawn_on_seen=True)
    source = open_coco(config.model_copy(update={"annotated": "upright"}), "train")
    all_white(*source.load(0))
    if orientation > 4:  # which sizes tell
        found = open_coco(config, "train")
        assert found.annotated == "upright"
        assert "data.annotated=upright says the same" in " ".join(found.notes)
        all_white(*found.load(0))
        wrong = open_coco(config.model_copy(update={"annotated": "stored"}), "train")
        with pytest.raises(BrokenImage, match=r"are for 40 x 28; data.annotated=upright reads them otherwise"):
            wrong.load(0)


def test_sizes_that_contradict_each_other_are_refused_with_the_key(tmp_path):
    config = write_coco(tmp_path, (40, 28), 6)
    file = tmp_path / "instances.json"
    content = json.loads(file.read_text())
    content["images"].append({"id": 2, "file_name": "b.png", "width": 28, "height": 40})
    file.write_text(json.dumps(content))
    save(tmp_path / "images" / "b.png", stored((40, 28)), 6)
    with pytest.raises(DataError, match=r"a\.png have the size of the stored image, .*b\.png .*data.annotated=stored"):
        open_coco(config, "train")


def write_pair(root, size, orientation, mask, mask_suffix="png", mask_orientation=1):
    save(root / "images" / "a.png", stored(size), orientation)
    save(root / "masks" / f"a.{mask_suffix}", mask, mask_orientation)
    (root / "classes.txt").write_text("ground\nthing\n")
    return SegmentationData(source=str(root), workers=0)


def labels_fit(config):
    source = open_pairs(config)
    assert check_pairs(source, [0], 0) == []
    image, labels = source.load(0)
    np.testing.assert_array_equal(labels == 1, np.asarray(image)[..., 0] == 255)
    return source


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_masks_of_stored_pixels_are_turned_with_them(orientation, size, tmp_path):
    mask = (stored(size)[..., 0] == 255).astype(np.uint8)
    labels_fit(write_pair(tmp_path, size, orientation, mask))


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_masks_own_orientation_counts(orientation, suffix, tmp_path):
    mask = (stored((40, 28))[..., 0] == 255).astype(np.uint8)
    labels_fit(write_pair(tmp_path, (40, 28), orientation, mask, suffix, orientation))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_masks_of_images_as_they_are_seen_are_known_by_size_or_by_the_setting(orientation, tmp_path):
    mask = (seen_by_pillow(stored((40, 28)), orientation)[..., 0] == 255).astype(np.uint8)
    config = write_pair(tmp_path, (40, 28), orientation, mask)
    labels_fit(config.model_copy(update={"annotated": "upright"}))
    if orientation > 4:
        assert "data.annotated=upright" in " ".join(labels_fit(config).notes)
        (wrong,) = check_pairs(open_pairs(config.model_copy(update={"annotated": "stored"})), [0], 0)
        assert wrong.endswith(
            "is 40 x 28 pixels, and its image 28 x 40 as it is seen; data.annotated=upright if it was drawn on the "
            "image as it is seen"
        )


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_benchmarks_box_is_of_the_stored_pixels(orientation, tmp_path):
    path = save(tmp_path / "a.png", stored((40, 28)), orientation)
    image = BenchmarkSource(Names([str(path)]), {0: BOX}).load(0)
    assert np.asarray(image).min() == 255
    assert sorted(image.size) == [12, 18]


def test_a_mask_without_orientation_is_as_it_is_stored(tmp_path):
    labels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    Image.fromarray(labels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(str(tmp_path / "a.png")), labels)
