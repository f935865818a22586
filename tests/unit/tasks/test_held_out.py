"""A model is never measured on images that it was trained on, in every task and however the images are named.

No framework takes part: the models are stand-ins that the tasks only load.
"""

import json
import os
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ehm.backends.base import ALONE
from ehm.config import (
    CalibrationConfig,
    DetectionConfig,
    FinetuneConfig,
    ModelSource,
    RetrievalConfig,
    SegmentationConfig,
)
from ehm.config.inputs import InputSpec
from ehm.data.subset import Subset
from ehm.deploy.bundle.manifest import Source
from ehm.deploy.export.precision.calibration import choose_images
from ehm.errors import ConfigError, DataError
from ehm.models.shapes import spec_from_settings, spec_to_json
from ehm.storage.arrays import LearnerState
from ehm.storage.checkpoint import open_checkpoint, save_checkpoint
from ehm.tasks.base import merge_config
from ehm.tasks.classification.task import Classification
from ehm.tasks.detection.task import Detection
from ehm.tasks.retrieval.task import Retrieval
from ehm.tasks.segmentation.task import Segmentation

IMAGES = 24


class Model:
    """A learner of a task, as far as opening one asks for it."""

    image_size = (16, 16)
    inputs = InputSpec()
    notes = ()

    def load(self, state):
        pass


BACKEND = SimpleNamespace(
    processes=ALONE,
    create_task_learner=lambda *_: Model(),
)


def save(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)).save(path)


def write_classes(root, seed=0):
    for number in range(IMAGES):
        save(root / f"class{number % 6}" / f"{number:02d}.png", 100 * seed + number)


def write_pairs(root, seed=0):
    (root / "masks").mkdir(parents=True, exist_ok=True)
    for number in range(IMAGES):
        save(root / "images" / f"{seed}{number:02d}.png", 100 * seed + number)
        Image.fromarray(np.tile(np.arange(12, dtype=np.uint8) % 2, (12, 1))).save(
            root / "masks" / f"{seed}{number:02d}.png"
        )
    (root / "classes.txt").write_text("one\ntwo\n")


def write_objects(root, seed=0):
    file = root / "instances.json"
    content = json.loads(file.read_text()) if file.is_file() else {"images": [], "annotations": []}
    for number in range(100 * seed, 100 * seed + IMAGES):
        save(root / "images" / f"{number}.png", number)
        content["images"].append({"id": number, "file_name": f"{number}.png", "height": 12, "width": 12})
        box = {"id": number, "image_id": number, "category_id": 1 + number % 2, "bbox": [1, 1, 5, 5]}
        content["annotations"].append(box)
    content["categories"] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "cup"}]
    file.write_text(json.dumps(content))


SCRATCH = ModelSource(width=16, depth=1, heads=1, image_size=16, patch_size=8)
FEW = {"optim": {"epochs": 1, "batch_size": 4, "warmup_epochs": 0, "warmup_steps": 0}, "folds": 3, "model": SCRATCH}
TASKS = {
    "classification": (Classification, FinetuneConfig, write_classes, {}),
    "detection": (Detection, DetectionConfig, write_objects, {"masks": False}),
    "retrieval": (Retrieval, RetrievalConfig, write_classes, {}),
    "segmentation": (Segmentation, SegmentationConfig, write_pairs, {"crop_size": 32}),
}


def names(part):
    return {os.path.basename(part.source.name(index)) for index in part.indices.tolist()}


def contents(part):
    return {Path(part.source.name(index)).read_bytes() for index in part.indices.tolist()}


class Trained:
    """A task's checkpoint as training leaves it, with random weights that nobody looks at."""

    def __init__(self, task, root, folder, **sections):
        task_class, config_class, self.write, more = TASKS[task]
        self.write(root)
        data = {"source": str(root), "workers": 0}
        self.config = config_class.model_validate({**FEW, **more, "data": data, **sections})
        self.task = task_class(self.config, BACKEND)
        self.meta = {
            "kind": self.task.kind,
            "step": 1,
            "config": self.task.config_to_keep,
            "encoder": spec_to_json(spec_from_settings(SCRATCH)),
            "classes": list(self.task.classes),
            "data": self.task.data.to_json(),
        }
        state = LearnerState({"weight": np.zeros(1)}, {})
        self.folder = save_checkpoint(folder, state, self.meta, self.task.data.to_arrays())

    def measured(self, *overrides):
        checkpoint = open_checkpoint(self.folder)
        return type(self.task).open_evaluation(checkpoint, BACKEND, None, list(overrides)).subset


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("task", TASKS)
def test_the_same_images_are_held_out_wherever_they_lie(task, home, capsys):
    trained = Trained(task, home / "data", home / "run")
    held_out = names(trained.task.val)
    assert 0 < len(held_out) < IMAGES
    assert held_out.isdisjoint(names(trained.task.train))
    os.symlink("data", "link")
    shutil.copytree("data", "copy")
    for spelling in ("data/", "./data", f"{home}/copy/../data", "link", "copy"):
        assert names(trained.measured(f"data.source={spelling}")) == held_out, spelling
    shutil.move("data", "moved")
    part = trained.measured("data.source=moved")
    assert (names(part), part.title) == (held_out, trained.task.val.title)
    assert "left out" not in capsys.readouterr().out


@pytest.mark.parametrize("task", TASKS)
def test_what_was_trained_on_is_counted_and_left_out_of_a_larger_folder(task, home, capsys):
    trained = Trained(task, home / "data", home / "run")
    shutil.copytree("data", "more")
    if task in ("classification", "retrieval"):
        for number in range(4):
            save(home / "more" / f"class{number % 2}" / f"new{number}.png", 900 + number)
        new = {f"new{number}.png" for number in range(4)}
    else:
        before = set(os.listdir("more/images"))
        trained.write(home / "more", seed=9)
        new = set(os.listdir("more/images")) - before
    seen = len(trained.task.train)
    total = IMAGES + len(new)
    capsys.readouterr()
    part = trained.measured("data.source=more")
    assert names(part) == names(trained.task.val) | new
    assert part.title == f"all but {seen} seen before"
    said = capsys.readouterr().out
    assert f"{trained.folder} was trained on {seen} of the {total} images of more (all), which are left out" in said


@pytest.mark.parametrize("task", TASKS)
def test_another_fold_is_not_measured_by_who_trained_on_it(task, home):
    trained = Trained(task, home / "data", home / "run")
    with pytest.raises(
        DataError, match=r"data.source .*data: .* was trained on all \d+ images of it \(.*fold 1 of 3\)"
    ):
        trained.measured("fold=1")


def test_renamed_copies_and_tar_files_hold_the_same_images(home):
    trained = Trained("classification", home / "data", home / "run")
    held_out = {next((home / "data").rglob(name)).read_bytes() for name in names(trained.task.val)}
    for number, file in enumerate(sorted((home / "data").rglob("*.png"))):
        target = home / "renamed" / file.parent.name / f"z{99 - number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    part = trained.measured("data.source=renamed")
    assert contents(part) == held_out


def test_training_on_a_tar_file_is_known_in_a_folder(home):
    write_classes(home / "data")
    with tarfile.open(home / "x.tar", "w") as tar:
        for number, file in enumerate(sorted((home / "data").rglob("*.png"))):
            (home / "label").write_text(str(number % 2))
            tar.add(file, f"{number:04d}.png")
            tar.add(home / "label", f"{number:04d}.cls")
    trained = Trained("classification", home / "unused", home / "run", data={"source": "x.tar", "workers": 0})
    shutil.move("x.tar", "y.tar")
    assert len(trained.measured("data.source=y.tar")) == len(trained.task.val)
    for number, file in enumerate(sorted((home / "data").rglob("*.png"))):
        (home / "numbered" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, home / "numbered" / str(number % 2))
    assert len(trained.measured("data.source=numbered")) == len(trained.task.val)


def test_other_images_of_the_same_names_and_sizes_are_all_measured(home):
    for root, shift in (("data", 0), ("other", 100)):
        for number in range(IMAGES):
            path = home / root / f"class{number % 6}" / f"{number:02d}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9), (number + shift,) * 3).save(path)
    trained = Trained("classification", home / "unused", home / "run", data={"source": "data", "workers": 0})
    assert len(trained.measured("data.source=other")) == IMAGES
    for number in range(3):
        shutil.copy(f"data/class{number}/{number:02d}.bmp", f"other/class{number}/{number:02d}.bmp")
    held_out = names(trained.task.val)
    assert names(trained.measured("data.source=other")) == names(Subset(trained.task.val.source, None, "")) - (
        {"00.bmp", "01.bmp", "02.bmp"} - held_out
    )


def test_a_source_that_has_changed_since_is_measured_without_what_was_trained_on(home):
    trained = Trained("classification", home / "data", home / "run")
    save(home / "data" / "class0" / "new.png", 777)
    assert names(trained.measured()) == names(trained.task.val) | {"new.png"}


def test_the_part_to_train_on_is_refused_and_the_other_one_measured(home, capsys):
    write_classes(home / "data" / "train")
    write_classes(home / "data" / "val", seed=1)
    shutil.copy("data/train/class0/00.png", "data/val/class0/copy.png")
    trained = Trained("classification", home / "unused", home / "run", data={"source": "data", "workers": 0})
    note = f"1 of the {IMAGES + 1} images to measure on (val) are copies of images to train on"
    assert note in capsys.readouterr().out
    for same in ("data/.", "data/val"):
        assert len(trained.measured(f"data.source={same}")) == IMAGES + 1
        assert note.split(" (")[0] in capsys.readouterr().out
    with pytest.raises(DataError, match=f"was trained on all {IMAGES} images of it"):
        trained.measured("data.source=data/train")
    calibrating = CalibrationConfig(images=4, source="data/train")
    with pytest.raises(DataError, match=r"calibration.source data/train: .* was trained on all 20 images of it"):
        choose_images(calibrating, Source(checkpoint=str(home / "run"), kind="classifier", sha256=""))
    with pytest.raises(ConfigError, match=r"fold 1: no fold of data.source data is held out, because there are other"):
        Trained("classification", home / "unused", home / "other", data={"source": "data", "workers": 0}, fold=1)


def test_training_on_all_classes_for_a_benchmark_leaves_none_to_hold_out(home):
    write_classes(home / "benchmark", seed=4)
    trained = Trained("retrieval", home / "data", home / "run", benchmark="benchmark")
    assert len(trained.measured()) == IMAGES
    assert len(trained.measured("data.source=data/")) == IMAGES  # the same images: the benchmark counts
    with pytest.raises(DataError, match=f"was trained on all {IMAGES} images of it"):
        trained.measured("benchmark=null")
    shutil.copytree("data/class0", "benchmark/class0", dirs_exist_ok=True)
    part = trained.measured()
    assert len(part) == IMAGES - 4
    assert part.title.endswith("but 4 seen before")


def test_first_weights_that_saw_the_labels_are_not_measured_on_them(home, capsys):
    first = Trained("classification", home / "data", home / "first")
    capsys.readouterr()
    scratch = FEW["model"].model_dump()
    Trained("classification", home / "data", home / "same", model={**scratch, "init": str(first.folder)})
    assert "left out" not in capsys.readouterr().out  # the same fold is held out
    other = {"model": {**scratch, "init": str(first.folder)}, "fold": 1}
    with pytest.raises(DataError, match=r"model.init .* was trained on all \d+ images of it \(fold 1 of 3\)"):
        Trained("classification", home / "data", home / "other", **other)
    write_classes(home / "next", seed=3)
    data = {"source": "next", "workers": 0}
    second = Trained("classification", home / "unused", home / "second", model=other["model"], data=data)
    assert names(second.measured("data.source=data")) == names(first.task.val)  # what both saw is left out


def test_a_checkpoint_of_an_earlier_version_goes_by_the_path(home):
    trained = Trained("classification", home / "data", home / "run")
    state = trained.folder / "state.json"
    meta = json.loads(state.read_text())
    del meta["data"], meta["sha256"]["images.safetensors"]
    state.write_text(json.dumps(meta))
    assert names(trained.measured("data.source=data/")) == names(trained.task.val)
    shutil.copytree("data", "copy")
    assert len(trained.measured("data.source=copy")) == IMAGES


def test_a_resumed_task_wants_the_same_classes_in_the_same_order(home):
    trained = Trained("segmentation", home / "data", home / "run")
    assert Segmentation(trained.config, BACKEND, open_checkpoint(trained.folder)).data.train == trained.task.data.train
    for text, message in (
        ("two\none\n", "the classes were in the order one, two and are in the order two, one"),
        ("one\nthree\n", "of the 2 classes two is now three"),
        ("one\ntwo\nthree\n", r"there were 2 classes \(one, two\) and there are 3 \(one, two, three\)"),
    ):
        (home / "data" / "classes.txt").write_text(text)
        with pytest.raises(ConfigError, match=message):
            Segmentation(trained.config, BACKEND, open_checkpoint(trained.folder))


@pytest.mark.parametrize("task", TASKS)
def test_a_resumed_task_wants_the_same_images_and_keeps_knowing_them(task, home):
    trained = Trained(task, home / "data", home / "run")
    task_class = TASKS[task][0]
    shutil.move("data", "moved")
    data = trained.config.data.model_copy(update={"source": "moved"})
    config = trained.config.model_copy(update={"data": data})
    again = task_class(config, BACKEND, open_checkpoint(trained.folder)).data
    assert again.to_json() == trained.task.data.to_json()
    for name, found in again.to_arrays().items():
        np.testing.assert_array_equal(found, trained.task.data.to_arrays()[name])
    file = sorted((home / "moved").rglob("*.png"))[0]
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(ConfigError, match=r"data.source moved is not what step-00000001 was trained on"):
        task_class(config, BACKEND, open_checkpoint(trained.folder))


def test_calibration_and_its_measure_keep_to_what_training_held_out(home):
    trained = Trained("classification", home / "data", home / "run")
    held_out, source = names(trained.task.val), Source(checkpoint=str(home / "run"), kind="classifier", sha256="")
    shutil.copytree("data", "copy")
    for settings in ({}, {"source": "copy"}, {"measure": "copy"}, {"source": "copy", "measure": "data/"}):
        calibration, measured = choose_images(CalibrationConfig(images=4, **settings), source)
        assert names(measured.subset) == held_out, settings
        assert names(calibration.subset) == names(trained.task.train), settings
    save(home / "copy" / "class0" / "new.png", 555)
    _, measured = choose_images(CalibrationConfig(images=4, measure="copy"), source)
    assert names(measured.subset) == held_out | {"new.png"}
    write_classes(home / "other", seed=5)
    calibration, measured = choose_images(CalibrationConfig(images=4, source="other", measure="copy"), source)
    assert len(calibration.subset) == 4
    assert names(measured.subset) == held_out | {"new.png"}
    shutil.copytree("other", "copy", dirs_exist_ok=True, ignore=lambda *_: ["class1"])
    _, measured = choose_images(CalibrationConfig(images=4, source="other", measure="copy"), source)
    assert not contents(measured.subset) & contents(calibration.subset)


def test_calibration_of_a_pretrained_encoder_takes_the_classes_that_it_was_trained_on(home):
    write_classes(home / "data")
    data = {"source": "data", "layout": "auto", "classes": ["class1", "class4"]}
    meta = {"kind": "pretrain", "step": 1, "config": {"data": data}}
    folder = save_checkpoint(home / "run", LearnerState({"weight": np.zeros(1)}, {}), meta)
    source = Source(checkpoint=str(folder), kind="pretrain", sha256="")
    calibration, measured = choose_images(CalibrationConfig(images=4), source)
    expected = {f"{number:02d}.png" for number in range(IMAGES) if number % 6 in (1, 4)}
    assert names(calibration.subset) | names(measured.subset) == expected


def test_a_source_that_is_named_to_measure_on_is_measured_alone():
    data = {"source": "a", "weight": 2.0, "sources": [{"source": "b"}], "crop_pct": 0.9}
    metadata = {"config": FinetuneConfig.model_validate({"data": data}).model_dump(mode="json")}
    checkpoint = SimpleNamespace(metadata=metadata, folder=Path("run"))
    kept = merge_config(FinetuneConfig, checkpoint, None, [])
    assert [each.source for each, _ in kept.data.each_source] == ["a", "b"]
    other = merge_config(FinetuneConfig, checkpoint, None, ["data.source=c"])
    assert [each.source for each, _ in other.data.each_source] == ["c"]
    assert other.data.crop_pct == 0.9
    several = merge_config(FinetuneConfig, checkpoint, None, ["data.source=c", "data.sources=[{source: d}]"])
    assert [each.source for each, _ in several.data.each_source] == ["c", "d"]
