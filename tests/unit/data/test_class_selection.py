"""``data.classes`` keeps the images of some classes, in every kind of source."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from ehm.config import DataConfig, TrainConfig, load_config
from ehm.data import open_source
from ehm.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # of the index of tar files


def draw(value):
    """The bytes of a small picture of one grey value."""
    file = io.BytesIO()
    Image.new("L", (4, 4), value).save(file, "PNG")
    return file.getvalue()


def grey(source):
    """The value of each image of a source."""
    return [source.load(index).getpixel((0, 0))[0] for index in range(len(source))]


@pytest.fixture
def folder(tmp_path):
    """Three classes of two images each, in two parts; each image has a grey value of its own."""
    for number, name in enumerate(("emu", "cat", "dog")):
        for part, first in (("train", 10), ("val", 100)):
            path = tmp_path / "folder" / part / name
            path.mkdir(parents=True)
            for index in range(2):
                (path / f"{index}.png").write_bytes(draw(first + 10 * number + index))
    return tmp_path / "folder"


def test_a_folder_keeps_its_order_whatever_the_order_of_the_names(folder):
    (folder / "train" / "yak").mkdir()
    for classes in (["dog", "cat"], ["cat", "dog"]):
        train = open_source(DataConfig(source=str(folder), classes=classes), "train")
        assert train.classes == ("cat", "dog")
        assert train.labels.tolist() == [0, 0, 1, 1]
        assert grey(train) == [20, 21, 30, 31]
        assert train.name(2).endswith("train/dog/0.png")
        assert train.empty_classes == ()  # yak/ is none of the classes that are wanted
        assert train.notes[-1] == "data.classes: 2 of the 3 classes, 4 of 6 images"
        assert grey(open_source(DataConfig(source=str(folder), classes=classes), "val")) == [110, 111, 120, 121]
    assert open_source(DataConfig(source=str(folder)), "train").empty_classes == ("yak",)


def test_shards_are_selected_by_number(tmp_path):
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for index, label in enumerate((2, 0, 1, 2)):
            for suffix, data in (("png", draw(index)), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{index}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    source = open_source(DataConfig(source=str(tmp_path), classes=[2, 1]), "train")
    assert source.classes == ("1", "2")
    assert source.labels.tolist() == [1, 0, 1]
    assert grey(source) == [0, 2, 3]
    assert source.name(1).endswith("set.tar/2.png")


def test_the_photographs_of_elpv_keep_what_belongs_to_them():
    everything = open_source(DataConfig())
    source = open_source(DataConfig(classes=["defective"]))
    chosen = everything.labels == 1
    assert np.array_equal(source.probability, everything.probability[chosen])
    assert list(source.kind) == [kind for kind, keep in zip(everything.kind, chosen, strict=True) if keep]
    assert source.name(0) == everything.name(int(np.argmax(chosen)))


def test_what_cannot_be_selected_is_one_sentence(folder):
    with pytest.raises(DataError, match=r"data.classes: cow is not among the 3 classes of data.source .*cat, dog, emu"):
        open_source(DataConfig(source=str(folder), classes=["cat", "cow"]))
    with pytest.raises(DataError, match=r"data.classes: data.source .* has no labels; leave data.classes out"):
        open_source(DataConfig(source=str(folder / "train" / "cat"), classes=["cat"]))
    for file in (folder / "val" / "cat").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"data.classes: data.source .* has no image of cat \(val\)"):
        open_source(DataConfig(source=str(folder), classes=["cat"]), "val")


def test_the_command_line_takes_names_and_numbers():
    overrides = ["data.source=mnist", "data.classes=[T-shirt/top, Ankle boot, 7]"]
    config = load_config(TrainConfig, "elpv/pretrain", overrides)
    assert config.data.classes == ("T-shirt/top", "Ankle boot", "7")
    assert TrainConfig.model_validate(json.loads(config.model_dump_json())) == config
    with pytest.raises(ConfigError, match=r"data\.classes"):
        load_config(TrainConfig, "elpv/pretrain", ["data.classes=[]"])
