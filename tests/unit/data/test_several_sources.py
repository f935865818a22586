"""Several sources as one, each drawn as often as its weight says."""

import csv

import numpy as np
import pytest
from PIL import Image

from ehm.backends.base import ALONE
from ehm.config import DataConfig, FinetuneConfig, TrainConfig, load_config
from ehm.data import EvalTransform, open_source
from ehm.data.sources.identity import UNREADABLE, hash_images, identify_source
from ehm.data.subset import find_groups, find_targets
from ehm.errors import ConfigError, DataError
from ehm.tasks.classification.task import Classification
from ehm.training.loaders import make_eval_loader, make_train_loader


def write_folder(root, counts, first=0):
    """Class folders with so many images each, whose grey values count on from ``first``."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (4, 4), first + number).save(root / name / f"{number}.png")
        first += count
    return root


@pytest.fixture
def folders(tmp_path):
    first = write_folder(tmp_path / "first", {"cat": 4, "dog": 4})
    second = write_folder(tmp_path / "second", {"dog": 6, "emu": 4}, 100)
    return first, second


def configure(folders, weight=1.0, **values):
    first, second = folders
    return DataConfig(source=str(first), sources=[{"source": str(second), "weight": weight}], workers=0, **values)


def grey(source, index):
    return source.load(index).getpixel((0, 0))[0]


def test_classes_of_one_name_are_one_class(folders):
    source = open_source(configure(folders))
    assert len(source) == 18
    assert source.classes == ("cat", "dog", "emu")
    assert np.bincount(source.labels).tolist() == [4, 10, 4]
    assert [grey(source, index) for index in (0, 7, 8, 17)] == [0, 7, 100, 109]
    assert source.name(8).endswith("second/dog/0.png")
    assert source.notes[0] == f"from {folders[0]}, weight 1: 8 images"


@pytest.mark.parametrize(("weight", "times"), [(2.0, [2] * 10), (0.3, [1] * 3 + [0] * 7), (1.5, [2] * 5 + [1] * 5)])
def test_an_epoch_has_each_source_as_often_as_it_weighs(folders, weight, times):
    config = FinetuneConfig(data=configure(folders, weight), optim={"batch_size": 1})
    source = open_source(config.data)

    def draw(epoch):
        with make_train_loader(source, EvalTransform((4, 4)), config, ALONE) as loader:
            steps = loader.steps_per_epoch
            return np.array(loader.list_indices(epoch * steps, (epoch + 1) * steps))

    counts = np.bincount(draw(0), minlength=18)
    assert counts[:8].tolist() == [1] * 8
    assert sorted(counts[8:].tolist(), reverse=True) == times
    # the same images in every epoch, in another order
    assert np.array_equal(np.bincount(draw(1), minlength=18), counts)
    assert not np.array_equal(draw(0), draw(1))
    # what is measured has every image once
    with make_eval_loader(source, EvalTransform((4, 4)), config) as loader:
        assert loader.list_indices(0, loader.steps_per_epoch) == list(range(18))


def test_parts_of_all_sources_go_together(tmp_path):
    for part, first in (("train", 0), ("val", 50)):
        write_folder(tmp_path / "parts" / part, {"cat": 3, "dog": 2}, first)
    write_folder(tmp_path / "plain", {"emu": 4, "cat": 1}, 100)
    config = configure((tmp_path / "plain", tmp_path / "parts"))
    train = open_source(config, "train")
    val = open_source(config, "val")
    # what has no validation part is trained on
    assert (len(train), train.split, len(val), val.split) == (10, "train", 5, "val")
    assert train.classes == val.classes == ("cat", "emu", "dog")
    assert [val.classes[label] for label in val.labels] == ["cat"] * 3 + ["dog"] * 2
    subsets = Classification.divide_source(FinetuneConfig(data=config), train)
    assert [subset.title for subset in subsets] == ["train", "val"]
    with pytest.raises(DataError, match="no validation part"):
        open_source(configure((tmp_path / "plain", tmp_path / "plain")), "val")


def test_it_is_known_again_by_what_each_source_holds(folders):
    mixed = open_source(configure(folders))
    identity = identify_source(mixed)
    assert identity.images == 18
    assert identity.groups == ""
    alone = [open_source(DataConfig(source=str(folder))) for folder in folders]
    keys = hash_images(mixed, np.array([3, 9, 0, 17]), "content")
    assert keys.tolist() == [
        *hash_images(alone[0], np.array([3]), "content"),
        *hash_images(alone[1], np.array([1]), "content"),
        *hash_images(alone[0], np.array([0]), "content"),
        *hash_images(alone[1], np.array([9]), "content"),
    ]
    assert UNREADABLE not in keys
    (folders[1] / "dog" / "0.png").unlink()
    assert identify_source(open_source(configure(folders))) != identity


def test_tables_keep_their_labels_and_groups_apart(tmp_path):
    tables = []
    for name, labels in (("a", ["x;y", "", "y"]), ("b", ["z", "y;z", "x"])):
        write_folder(tmp_path / name, {".": 3})
        with (tmp_path / name / "t.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["path", "label", "patient"])
            rows.writerows([f"{number}.png", label, "p1"] for number, label in enumerate(labels))
        tables.append(tmp_path / name / "t.csv")
    source = open_source(configure(tables, columns={"separator": ";", "group": "patient"}))
    assert source.classes == ("x", "y", "z")
    assert find_targets(source).astype(int).tolist() == [
        [1, 1, 0],
        [0, 0, 0],
        [0, 1, 0],
        [0, 0, 1],
        [0, 1, 1],
        [1, 0, 0],
    ]
    assert find_groups(source).tolist() == [0, 0, 0, 1, 1, 1]  # p1 of one site is another patient than p1 of the other


def test_a_source_without_labels_pretrains_alone(folders, tmp_path):
    write_folder(tmp_path / "flat", {".": 3})
    source = open_source(configure((folders[0], tmp_path / "flat")))
    assert source.labels is None
    config = FinetuneConfig(data=configure((folders[0], tmp_path / "flat")))
    with pytest.raises(DataError, match=f"of its sources, {tmp_path / 'flat'} has none"):
        Classification.divide_source(config, source)


def test_settings_that_do_not_go_together_are_refused(folders):
    with pytest.raises(ConfigError, match="classes and sources exclude each other"):
        load_config(TrainConfig, None, [f"data.sources=[{{source: {folders[1]}}}]", "data.classes=[cat]"])
    with pytest.raises(ConfigError, match=r"weight 0\.5 is beside other sources"):
        load_config(TrainConfig, None, ["data.weight=0.5"])
