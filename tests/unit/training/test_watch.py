"""The choice of images and steps, the noticing of a collapse, and the loop around them without any framework."""

import json
import re
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest
from fake_learner import FakeBackend, FakeLearner
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ehm import backends
from ehm.analysis.ridge import PENALTIES
from ehm.config import TrainConfig
from ehm.data import open_source, stratified_folds
from ehm.errors import ConfigError, DataError
from ehm.storage.checkpoint import newest_checkpoint, open_checkpoint
from ehm.training import watch
from ehm.training.collapse import CollapseDetector
from ehm.training.feature_figures import measure_features
from ehm.training.plan import plan_run
from ehm.training.pretrain import train
from ehm.training.waiting import WaitClock
from ehm.training.watch_plan import WatchPlan
from ehm.training.watched_images import choose_images, open_watched_images

TINY = [
    "encoder=vit_tiny",
    "image_size=32",
    "patch_size=8",
    "optim.batch_size=8",
    "optim.epochs=4",
    "optim.warmup_epochs=1",
    "masking=random",
    "data.workers=0",
    "run.trackers=[]",
]


class Source(SimpleNamespace):
    """Images of classes, of which nothing is read."""

    split = "all"

    def __init__(self, labels, classes):
        super().__init__(labels=np.array(labels), classes=tuple(map(str, range(classes))))

    def __len__(self):
        return len(self.labels)


def test_a_source_of_its_own_is_watched_without_the_other_sources_of_the_data(images, stripes, tmp_path):
    data = {"source": str(images), "weight": 2, "sources": [{"source": str(images.parent / "data.more")}]}
    shutil.copytree(images, tmp_path / "data.more")
    config = TrainConfig.model_validate({"data": data, "watch": {"source": str(stripes)}})
    training = open_source(config.data, "train")
    watched = open_watched_images(config, training, None)
    assert (len(watched), watched.classes) == (48, 2)
    # a key of the section data in an error is that of the section watch, and the end of a path stays
    missing = tmp_path / "data.source"
    config = TrainConfig.model_validate({"data": data, "watch": {"source": str(missing)}})
    with pytest.raises(DataError, match=f"^watch.source {re.escape(str(missing))}: there is no such folder"):
        open_watched_images(config, training, None)


def test_images_are_few_and_of_every_class_in_its_share():
    rng = np.random.default_rng(0)
    source = Source(rng.permutation([0] * 700 + [1] * 250 + [2] * 50), 3)
    chosen = choose_images(source, "mine", 100)
    assert np.bincount(chosen.labels).tolist() == [70, 25, 5]
    assert chosen.largest_class == 0.7
    np.testing.assert_array_equal(chosen.labels, source.labels[chosen.subset.indices])
    assert len(np.unique(chosen.subset.indices)) == 100
    for fold in range(5):
        assert np.bincount(chosen.labels[chosen.folds == fold]).tolist() == [14, 5, 1]
    np.testing.assert_array_equal(choose_images(source, "mine", 100).subset.indices, chosen.subset.indices)
    assert len(choose_images(source, "mine", 5000)) == 1000


def test_of_very_many_classes_some_are_measured_and_rare_ones_are_not():
    source = Source(np.repeat(np.arange(1000), 20), 1000)
    chosen = choose_images(source, "mine", 200)
    assert chosen.classes == 20
    assert np.bincount(chosen.labels).tolist() == [10] * 20
    rare = choose_images(Source([0] * 20 + [1] * 4 + [2] * 20, 3), "mine", 100)
    assert (rare.classes, len(rare)) == (2, 40)
    assert set(rare.labels) == {0, 1}
    assert choose_images(Source([0] * 20 + [1] * 4, 2), "mine", 100).labels is None
    assert len(choose_images(Source([0] * 20 + [1] * 4, 2), "mine", 100)) == 24


def test_each_image_is_classed_by_the_other_folds():
    """Against scikit-learn's cross-validation, on features that say a little."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 150)
    features = (rng.normal(size=(150, 40)) + 0.6 * np.eye(3, 40)[labels]).astype(np.float32)
    folds = stratified_folds(labels, 5, 0)
    figures = measure_features(features, labels, folds, 3)
    centre = StandardScaler(with_std=False)
    models = {
        "knn": make_pipeline(
            centre, KNeighborsClassifier(20, metric="cosine", weights=lambda far: np.exp(-far / 0.07))
        ),
        "linear": make_pipeline(StandardScaler(), RidgeClassifierCV(PENALTIES * 120)),
    }
    for name, model in models.items():
        expected = cross_val_predict(model, features.astype(np.float64), labels, cv=PredefinedSplit(folds))
        assert figures[name] == pytest.approx(np.mean(expected == labels), abs=0.5 / 150)
        assert 0.33 < figures[name] < 0.8
    assert measure_features(features).keys() == {"rankme", "feature_spread"}


def watch_plan(images, epochs=100, every=None, interval=None, **run):
    config = TrainConfig(
        optim={"batch_size": 10, "epochs": epochs, "warmup_epochs": 0}, watch={"every": every}, run=run
    )
    plan = plan_run(config.optim, config.run, 20)
    return WatchPlan(config, plan, images, interval), plan


def due_steps(schedule, plan):
    return [step for step in range(1, plan.last + 1) if schedule.is_due(step)]


def test_a_run_is_measured_as_often_as_is_asked_for():
    schedule, plan = watch_plan(10**6, epochs=3, every=0.5)
    assert due_steps(schedule, plan) == [10, 20, 30, 40, 50, 60]
    schedule, plan = watch_plan(10**6, epochs=3, every=2)
    assert due_steps(schedule, plan) == [40, 60]
    assert schedule.describe() == "every 2 epochs and at the end"


def test_what_would_cost_too_much_is_measured_at_the_end_alone():
    schedule, plan = watch_plan(601)  # 3 % of 2,000 steps of 10 images are 600
    assert due_steps(schedule, plan) == [2000]
    assert "at the end alone" in schedule.describe()


@pytest.mark.parametrize(
    ("cost", "interval", "text"),
    [
        (1.5, 60, "every 3 epochs it takes 2.4% of the time"),
        (0.5, 20, "every epoch it takes 2.4%"),
        (0.2, 10, "every 10 steps it takes 2.0%"),
    ],
)
def test_the_first_measurement_decides_how_often(cost, interval, text):
    schedule, plan = watch_plan(600)
    assert schedule.is_due(20)
    assert not schedule.is_due(19)
    note = schedule.add_cost(20, cost)
    assert text in note
    assert schedule.interval == interval
    assert cost / (cost + interval) < 0.03
    assert due_steps(schedule, plan)[:2] == [interval, 2 * interval]
    assert schedule.add_cost(interval, 9 * cost) is None
    assert schedule.interval == interval
    resumed, _ = watch_plan(600, interval=schedule.interval)
    assert due_steps(resumed, plan) == due_steps(schedule, plan)


def test_what_is_left_is_the_end():
    schedule, plan = watch_plan(600)
    assert "the next measurement is that of the end" in schedule.add_cost(20, 100)
    assert due_steps(schedule, plan) == [2000]


def test_a_fall_that_lasts_is_said_once():
    detector = CollapseDetector()
    for step, rank in enumerate((20, 40, 15, 25, 15, 15)):  # two measurements in a row are an accident
        assert detector.add(step, {"rankme": rank, "feature_spread": 0.3, "knn": 0.7}) is None
    resumed = CollapseDetector(state=json.loads(json.dumps(detector.to_json())))
    warning = resumed.add(1006, {"rankme": 12.0, "feature_spread": 0.3, "knn": 0.7})
    assert "up to step 1,006: rankme is 12 and was 40 at step 1" in warning
    assert "knn" not in warning
    assert "optim.base_lr" in warning
    assert resumed.add(7, {"rankme": 11, "feature_spread": 0.3, "knn": 0.7}) is None
    assert CollapseDetector(state=resumed.to_json()).add(8, {"rankme": 10}) is None


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("knn", (0.9, 0.7, 0.7, 0.7), "knn is 0.7 and was 0.9"),
        ("linear_ema", (0.9, 0.7, 0.7, 0.7), "linear_ema is 0.7 and was 0.9"),
        ("feature_spread", (0.001, 0.002, 0.001), "feature_spread is 0.001 and was 0.002"),
    ],
)
def test_every_figure_can_fall(name, values, words):
    detector = CollapseDetector(chance=0.6)
    warnings = [detector.add(step, {name: value}) for step, value in enumerate(values)]
    assert warnings[:-1] == [None] * (len(values) - 1)
    assert words in warnings[-1]


@pytest.mark.parametrize(
    ("chance", "values", "is_fall"),
    [
        (0.69, (0.78, 0.70, 0.70, 0.70), True),
        (0.69, (0.78, 0.75, 0.75, 0.75), False),
        (0.69, (0.71, 0.69, 0.69, 0.69), False),  # within the error of 2,000 images
        (0.10, (0.90, 0.60, 0.60, 0.60), False),
    ],
)
def test_an_accuracy_falls_if_it_loses_its_lead_over_the_most_frequent_class(chance, values, is_fall):
    detector = CollapseDetector(chance)
    warnings = [detector.add(step, {"knn": value}) for step, value in enumerate(values)]
    assert any(warnings) == is_fall


@pytest.fixture
def learners(monkeypatch):
    """The learners of the runs of a test, whose features are noise, and after some steps tell two classes apart."""
    backend = FakeBackend()
    monkeypatch.setattr(backends, "get", lambda device, deterministic=False: backend)
    backend.best_steps = (12, 18)

    def compute_features(self, images, average=False):
        self.calls.append(("features", self.steps, len(images)))
        # stripes across differ from row to row, and others from column to column
        rows = images.mean(axis=(2, 3)).std(axis=1)
        columns = images.mean(axis=(1, 3)).std(axis=1)
        noise = np.random.default_rng(self.steps).normal(size=(len(images), 2))
        clear = self.steps in backend.best_steps and not average
        return (np.stack([rows, columns], axis=1) if clear else noise).astype(np.float32)

    monkeypatch.setattr(FakeLearner, "compute_features", compute_features)
    return backend


def run(source, out, *overrides, **options):
    return train(overrides=[*TINY, f"data.source={source}", *overrides], out=out, **options)


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_figures_are_logged_and_the_best_checkpoint_is_kept(learners, stripes, tmp_path, capsys):
    out = tmp_path / "out"
    result = run(stripes, out, "watch.every=1", "optim.ema_decay=0.9")
    measured = [line for line in lines(out) if "knn" in line]
    assert [line["step"] for line in measured] == [6, 12, 18, 24]
    names = {"knn", "linear", "rankme", "feature_spread"}
    assert names | {f"{name}_ema" for name in names} <= measured[0].keys()
    accuracies = [line["knn"] for line in measured]
    assert accuracies[1] == accuracies[2] == measured[1]["linear"] == 1
    assert max(accuracies[0], accuracies[3], measured[1]["knn_ema"]) < 0.8
    # the first of two that are equally good
    (best,) = (out / "best").iterdir()
    assert best.name == "step-00000012"
    assert open_checkpoint(best).metadata["watch"]["best_score"] == 1
    said = capsys.readouterr().out
    assert "watches 48 images of" in said
    assert "in 2 classes, the largest of which has 50%, every epoch and at the end" in said
    assert f"Checkpoint of the highest knn, 1: {best}" in said
    assert result.steps == 24


def test_the_speed_leaves_measuring_out_and_its_cost_decides_how_often(
    learners, stripes, tmp_path, monkeypatch, capsys
):
    """On a clock by which a step takes a second, and the features of eight images a tenth of one."""
    now = [0.0]
    monkeypatch.setattr("ehm.training.progress.WaitClock", lambda is_busy: WaitClock(is_busy, lambda: now[0]))
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def spend(name, seconds):
        method = getattr(FakeLearner, name)

        def spend_time(*args, **options):
            now[0] += seconds
            return method(*args, **options)

        monkeypatch.setattr(FakeLearner, name, spend_time)

    spend("train_step", 1.0)
    spend("compute_features", 0.1)
    run(stripes, tmp_path / "out", "watch.every=null", "optim.epochs=50", "run.checkpoint_every=10")
    logged = lines(tmp_path / "out")
    assert [line["images_per_second"] for line in logged] == pytest.approx([8] * len(logged))
    # 48 images take 0.6 seconds, which are 3 % of 20 steps, and four epochs have 24
    measured = [line["step"] for line in logged if "knn" in line]
    assert measured == [6, *range(24, 300, 24), 300]
    said = capsys.readouterr().out
    assert "Step 6: measuring the features took as long as 0.6 steps; every 4 epochs it takes 2.4% of the time" in said


def test_images_that_fill_the_memory_are_read_every_time(learners, stripes, tmp_path, monkeypatch):
    run(stripes, tmp_path / "kept", "watch.every=1")
    monkeypatch.setattr(watch, "_MOST_KEPT_BYTES", 0)
    run(stripes, tmp_path / "read", "watch.every=1")
    for name in ("knn", "linear", "rankme", "feature_spread"):
        kept, read = ([line.get(name) for line in lines(tmp_path / out)] for out in ("kept", "read"))
        assert kept == read


def test_the_best_score_survives_a_resumed_run(learners, stripes, tmp_path):
    out = tmp_path / "out"
    run(stripes, out, "watch.every=1", "run.max_steps=13", "run.keep=3")
    # killed before the checkpoints behind step 6 were complete, but not before the best one was
    for step in (12, 13):
        shutil.rmtree(out / f"checkpoints/step-{step:08d}")
    learners.best_steps = (18,)
    train(out=out, overrides=["run.max_steps=null"], resume=True)
    assert newest_checkpoint(out / "best").name == "step-00000012"
    measured = [line["step"] for line in lines(out) if "knn" in line]
    assert measured == [6, 12, 18, 24]


def test_another_figure_has_another_best_checkpoint(learners, stripes, tmp_path):
    out = tmp_path / "out"
    run(stripes, out, "watch.every=1", "run.max_steps=13")
    (before,) = (out / "best").iterdir()
    assert before.name == "step-00000012"
    shutil.rmtree(out / "checkpoints/step-00000013")
    train(out=out, overrides=["run.max_steps=20", "watch.figure=rankme"], resume=True)
    (best,) = (out / "best").iterdir()
    ranks = {line["step"]: line["rankme"] for line in lines(out) if line["step"] > 12 and "rankme" in line}
    assert best.name == f"step-{max(ranks, key=ranks.get):08d}"


def test_without_labels_there_are_two_figures_and_no_best(learners, images, tmp_path, capsys):
    out = tmp_path / "out"
    run(images, out, "watch.every=1", "optim.batch_size=4")
    measured = [line for line in lines(out) if "rankme" in line]
    assert len(measured) == 4
    assert not any("knn" in line or "linear" in line for line in measured)
    assert not (out / "best").exists()
    assert "12 images of" in capsys.readouterr().out
    run(images, tmp_path / "asked", "watch.figure=rankme", "optim.batch_size=4")
    assert (tmp_path / "asked/best").is_dir()
    with pytest.raises(ConfigError, match=r"watch\.figure knn: needs labels, and .* has none"):
        run(images, tmp_path / "refused", "watch.figure=knn", "optim.batch_size=4")


def test_another_folder_has_the_labels(learners, images, stripes, tmp_path):
    run(images, tmp_path / "out", f"watch.source={stripes}", "watch.images=20", "watch.every=4", "optim.batch_size=4")
    (last,) = [line for line in lines(tmp_path / "out") if "knn" in line]
    assert last["step"] == 12
    assert sum(call[2] for call in learners.learners[0].calls if call[0] == "features") == 20
    with pytest.raises(DataError, match=r"watch\.source /nowhere: there is no such folder"):
        run(images, tmp_path / "nowhere", "watch.source=/nowhere", "optim.batch_size=4")


def test_nothing_is_measured_if_it_is_off(learners, stripes, tmp_path):
    run(stripes, tmp_path / "out", "watch.every=0", "watch.source=/nowhere")
    assert not any(call[0] == "features" for call in learners.learners[0].calls)
    assert not any("rankme" in line for line in lines(tmp_path / "out"))
    assert not (tmp_path / "out/best").exists()


def test_features_that_are_not_finite_end_no_run(learners, stripes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        FakeLearner, "compute_features", lambda self, images, average=False: np.full((len(images), 2), np.nan)
    )
    run(stripes, tmp_path / "out", "watch.every=2")
    assert "Step 12: the features are not finite" in capsys.readouterr().out
    assert not any("rankme" in line for line in lines(tmp_path / "out"))


def test_images_of_a_part_are_preferred_if_they_have_labels(learners, stripes, tmp_path, capsys):
    for part in ("train", "val"):
        shutil.copytree(stripes, tmp_path / "parts" / part)
    for number in range(4, 24):
        for name in ("across", "down"):
            (tmp_path / f"parts/val/{name}/{number:02d}.png").rename(tmp_path / f"{part}-{name}-{number}.png")
    (tmp_path / "parts/val/down/more.png").write_bytes((tmp_path / "parts/val/down/00.png").read_bytes())
    (tmp_path / "parts/val/across/more.png").write_bytes((tmp_path / "parts/val/across/00.png").read_bytes())
    run(tmp_path / "parts", tmp_path / "out")
    assert "watches 10 images of" in capsys.readouterr().out
