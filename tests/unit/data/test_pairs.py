"""Images and masks on disk: every layout, and everything that can be wrong with one."""

import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ehm.config import SegmentationData
from ehm.data.sources.ade20k import CLASSES
from ehm.data.sources.masks import read_mask
from ehm.data.sources.pairs import check_pairs, open_pairs
from ehm.errors import BrokenImage, DataError


def write(root, images, masks, names, labels, mode="L", size=(8, 6)):
    """Grey images and masks (h, w) below ``root``."""
    for folder in (images, masks):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", size, (10, 20, 30)).save(root / images / f"{name}.jpg")
        picture = Image.fromarray(np.asarray(labels, np.uint8))
        if mode == "P":
            picture.putpalette([0, 0, 0, 255, 0, 0] + [0] * 762)  # keeps the numbers
            assert picture.mode == "P"
        picture.save(root / masks / f"{name}.png")
    return root


def pairs(root, **settings):
    return SegmentationData(source=str(root), **{"workers": 0, **settings})


MAP = np.arange(48).reshape(6, 8) % 3


@pytest.mark.parametrize("mode", ["L", "P"])
def test_a_folder_of_pairs(tmp_path, mode):
    write(tmp_path, "images", "masks", ["b", "a"], MAP, mode)
    (tmp_path / "classes.txt").write_text("sky\nsea\n\nsand\n")
    source = open_pairs(pairs(tmp_path), "train")
    assert (len(source), source.split, source.classes) == (2, "all", ("sky", "sea", "sand"))
    assert source.name(0).endswith("images/a.jpg")
    image, labels = pickle.loads(pickle.dumps(source)).load(1)
    assert (image.mode, image.size) == ("RGB", (8, 6))
    np.testing.assert_array_equal(labels, MAP)
    assert check_pairs(source, range(2), 0) == check_pairs(source, range(2), 2) == []
    with pytest.raises(DataError, match="has no validation part of its own"):
        open_pairs(pairs(tmp_path), "val")


@pytest.mark.parametrize(
    "places",
    [
        [("images/train", "masks/train"), ("images/val", "masks/val")],
        [("train/images", "train/masks"), ("val/images", "val/masks")],
        [("images/training", "labels/training"), ("images/validation", "labels/validation")],
        [("train/images", "train/annotations"), ("validation/images", "validation/annotations")],
    ],
)
def test_parts_of_a_folder(tmp_path, places):
    write(tmp_path, *places[0], ["1", "2", "3"], MAP)
    write(tmp_path, *places[1], ["4"], MAP % 2)
    config = pairs(tmp_path)
    assert [len(open_pairs(config, part)) for part in ("train", "val", "all")] == [3, 1, 4]
    assert open_pairs(config, "val").name(0).endswith("4.jpg")
    train, val = open_pairs(config, "train"), open_pairs(config, "val")
    assert (train.classes, train.named, val.classes) == (("0", "1", "2"), False, ("0", "1"))


def test_classes_without_names_are_counted_and_255_is_none(tmp_path):
    write(tmp_path, "images", "masks", ["a"], np.where(MAP == 2, 255, MAP))
    assert open_pairs(pairs(tmp_path, workers=2)).classes == ("0", "1")


def test_ade20k_as_published(tmp_path):
    annotation = np.array([[0, 1, 150], [2, 3, 0]])
    for part, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        write(
            tmp_path / "ADEChallengeData2016", f"images/{part}", f"annotations/{part}", [name], annotation, size=(3, 2)
        )
    for root in (tmp_path, tmp_path / "ADEChallengeData2016"):
        source = open_pairs(pairs(root), "val")
        assert (len(source), source.split, len(source.classes)) == (1, "val", 150)
        np.testing.assert_array_equal(source.load(0).labels, [[255, 0, 149], [1, 2, 255]])
    assert (CLASSES[0], CLASSES[12], CLASSES[149], len(set(CLASSES))) == ("wall", "person", "flag", 150)
    assert source.classes == CLASSES
    table = "Idx\tRatio\tTrain\tVal\tName\n" + "".join(f"{n + 1}\t0.1\t2\t3\tmy {n}, other name\n" for n in range(150))
    (root / "objectInfo150.txt").write_text(table)
    assert open_pairs(pairs(root), "val").classes[:2] == ("my 0", "my 1")
    (root / "objectInfo150.txt").write_text("something else\n")
    assert open_pairs(pairs(root), "val").classes == CLASSES
    assert open_pairs(pairs(root, layout="pairs"), "val").classes == tuple(map(str, range(151)))
    with pytest.raises(DataError, match="not ADE20K; looked for images/training"):
        open_pairs(pairs(tmp_path / "ADEChallengeData2016" / "images", layout="ade20k"))


def test_what_is_wrong_with_a_folder_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        open_pairs(pairs(tmp_path / "none"))
    with pytest.raises(DataError, match="no folder images/ with masks/, annotations/, labels/ beside it"):
        open_pairs(pairs(tmp_path))
    write(tmp_path, "images", "masks", ["a", "b"], MAP)
    (tmp_path / "masks" / "b.bmp").write_bytes((tmp_path / "masks" / "b.png").read_bytes())
    with pytest.raises(DataError, match=r"b.bmp and b.png in .*masks have one name; which is the mask\?"):
        open_pairs(pairs(tmp_path))
    (tmp_path / "masks" / "b.bmp").unlink()
    (tmp_path / "masks" / "b.png").rename(tmp_path / "masks" / "b_mask.png")
    with pytest.raises(DataError, match=r"1 of 2 images in .*images have no mask in .*masks: b.jpg needs b.png there"):
        open_pairs(pairs(tmp_path))
    (tmp_path / "masks" / "b_mask.png").rename(tmp_path / "masks" / "b.png")
    for names, words in (("one\n", "names 1 classes"), ("a\nb\na\n", "names the class a twice")):
        (tmp_path / "classes.txt").write_text(names)
        with pytest.raises(DataError, match=words):
            open_pairs(pairs(tmp_path))
    (tmp_path / "classes.txt").unlink()
    write(tmp_path, "images", "masks", ["a", "b"], MAP * 0)
    with pytest.raises(DataError, match="one class only; segmentation needs two"):
        open_pairs(pairs(tmp_path))
    for name in ("a", "b"):
        Image.new("RGB", (8, 6)).save(tmp_path / "masks" / f"{name}.png")
    with pytest.raises(DataError, match=r"none of its masks can be used: .*a\.png: a mask is a label image of 8 bits"):
        open_pairs(pairs(tmp_path))


def test_wrong_masks_are_named_with_what_is_wrong(tmp_path):
    write(tmp_path, "images", "masks", ["a", "b", "c", "d", "e"], MAP)
    (tmp_path / "classes.txt").write_text("x\ny\nz\n")
    masks = tmp_path / "masks"
    Image.fromarray(np.where(MAP == 2, 7, MAP).astype(np.uint8)).save(masks / "b.png")
    Image.fromarray(np.zeros((8, 6), np.uint8)).save(masks / "c.png")
    Image.new("RGB", (8, 6)).save(masks / "d.png")
    (masks / "e.png").write_bytes(b"nothing")
    source = open_pairs(pairs(tmp_path))
    wrong = [
        f"{masks}/b.png: has the value 7, and the 3 classes are 0 to 2 (255 is ignored)",
        f"{masks}/c.png: is 6 x 8 pixels, and its image 8 x 6",
    ]
    said = [*wrong, "this one has colours (Pillow's mode RGB)", "e.png: not an image of a known format"]
    found = check_pairs(source, range(5), 0)
    assert found[:2] == wrong
    assert [words in each for words, each in zip(said, found, strict=True)] == [True] * 4
    assert check_pairs(source, [0, 2], 2) == wrong[1:]
    for index, words in enumerate(said, 1):
        with pytest.raises(BrokenImage) as error:
            source.load(index)
        assert words in str(error.value)


def test_ade20k_names_values_as_they_stand_in_the_file(tmp_path):
    name = "ADE_train_00000001"
    write(tmp_path, "images/training", "annotations/training", [name], [[151, 0]], size=(2, 1))
    source = open_pairs(pairs(tmp_path), "train")
    (wrong,) = check_pairs(source, [0], 0)
    assert wrong.endswith(
        "ADE_train_00000001.png: has the value 151, and the 150 classes are 1 to 150 (255 and 0 are ignored)"
    )


def test_an_image_that_its_camera_turned_has_the_size_that_one_sees(tmp_path):
    write(tmp_path, "images", "masks", ["a"], MAP)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 8)).save(tmp_path / "images" / "a.jpg", exif=exif)
    source = open_pairs(pairs(tmp_path))
    assert check_pairs(source, [0], 0) == []
    assert source.load(0).image.size == (8, 6)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_mask_of_few_bits_has_the_values_that_lie_in_the_file(tmp_path, bits):
    """PNG and TIFF 6.0 pack the values of a row with the highest bits first; viewers spread them over 0 to 255."""
    labels = np.array([[0, 1, 1, 0, 1, 0, 0, 1]]) if bits == 1 else np.arange(8)[None] % 2**bits
    digits = (labels[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    packed = np.packbits(digits.reshape(1, -1)).tobytes()

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 8, 1, bits, 0, 0, 0, 0)
    png = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" + packed)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + png)
    np.testing.assert_array_equal(read_mask(str(tmp_path / "a.png")), labels)
    for photometric in (0, 1):  # white is zero, or black: of labels it does not matter
        tags = {256: 8, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8 + 2 + 12 * 8 + 4, 277: 1, 279: len(packed)}
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
        data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + packed
        (tmp_path / "a.tif").write_bytes(data)
        np.testing.assert_array_equal(read_mask(str(tmp_path / "a.tif")), labels)
