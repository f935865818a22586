"""Probes agree with scikit-learn by another path, and splits hold out every image once."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, log_loss, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ehm.analysis.neighbours import vote_by_neighbours
from ehm.comparison.answers import Answers, choose_figure, compute_figures, load_answers, save_answers
from ehm.comparison.images import draw_stratified, open_images
from ehm.comparison.measuring import check_measure
from ehm.comparison.probes import PENALTIES, probe_linearly
from ehm.config import MeasureConfig
from ehm.errors import ConfigError, DataError
from ehm.installation import build_install_command


@pytest.fixture(scope="module")
def clusters():
    """Training features and labels of three overlapping classes, and as many to class."""
    rng = np.random.default_rng(4)
    centres = np.concatenate([rng.normal(0, 1, (3, 8)), np.zeros((3, 24))], axis=1)  # most features tell nothing
    labels = rng.integers(0, 3, 300)
    features = (centres[labels] + rng.normal(0, 1.3, (300, 32)) + 5).astype(np.float32)
    return features[:150], labels[:150], features[150:], labels[150:]


def test_the_linear_probe_takes_the_penalty_of_the_lowest_loss_inside_the_training_images(clusters):
    features, labels, queries, _ = clusters
    inner = StratifiedKFold(3, shuffle=True, random_state=0)
    losses = []
    accuracies = []
    for penalty in PENALTIES:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=2000))
        held_out = cross_val_predict(model, features, labels, cv=inner, method="predict_proba")
        # the mean over folds, which differ in size
        losses.append(np.mean([log_loss(labels[test], held_out[test]) for _, test in inner.split(features, labels)]))
        hits = held_out.argmax(1) == labels
        accuracies.append(np.mean([hits[test].mean() for _, test in inner.split(features, labels)]))
    # neither the first nor what accuracy would choose, so that the choice can be seen
    assert 0 < np.argmin(losses) != np.argmax(accuracies)
    best = PENALTIES[int(np.argmin(losses))]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=best, max_iter=2000)).fit(features, labels)
    np.testing.assert_allclose(probe_linearly(features, labels, queries, 3), model.predict_proba(queries), atol=2e-3)


def test_neighbours_class_as_scikit_learn_with_the_same_weights(clusters):
    features, labels, queries, wanted = clusters
    mean = features.mean(0)

    def weigh(distances):
        return np.exp((1 - distances - 1) / 0.07)

    model = KNeighborsClassifier(20, weights=weigh, metric="cosine").fit(features - mean, labels)
    votes = vote_by_neighbours(features, labels, queries, 3, 20)
    np.testing.assert_allclose(votes, model.predict_proba(queries - mean), atol=1e-4)
    assert (votes.argmax(1) == wanted).mean() > 0.5


def test_a_class_of_one_image_and_a_class_without_any_can_be_probed(clusters):
    features, labels, queries, _ = clusters
    rare = np.flatnonzero(labels == 2)[:1]
    chosen = np.concatenate([np.flatnonzero(labels == 0), rare])
    scores = probe_linearly(features[chosen], labels[chosen], queries, 4)
    assert scores.shape == (150, 4)
    assert (scores[:, [1, 3]] == 0).all()
    np.testing.assert_allclose(scores.sum(1), 1)
    alone = np.flatnonzero(labels == 1)
    assert (probe_linearly(features[alone], labels[alone], queries, 3)[:, 1] == 1).all()


def test_figures_are_scikit_learns_and_answers_come_back_from_their_file(tmp_path):
    rng = np.random.default_rng(0)
    labels = (rng.random(80) < 0.3).astype(np.int64)
    scores = rng.random((80, 2)) + np.eye(2)[labels] * 0.3
    answers = Answers.from_scores(labels, scores)
    figures = compute_figures(answers, ("no", "yes"))
    assert figures["top1"] == (scores.argmax(1) == labels).mean()
    assert figures["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, scores.argmax(1)))
    assert figures["auc"] == pytest.approx(roc_auc_score(labels, scores[:, 1] - scores[:, 0]))
    three = Answers.from_scores(labels, np.eye(3)[labels])
    assert compute_figures(three, ("a", "b", "c")) == {"balanced_accuracy": 1, "top1": 1, "auc": None}

    path = tmp_path / "answers.safetensors"
    assert load_answers(path) == []
    save_answers(path, [answers, three])
    for before, after in zip([answers, three], load_answers(path), strict=True):
        for name in vars(before):
            np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
    path.write_bytes(path.read_bytes()[:-9])
    assert load_answers(path) == []


def test_folds_hold_out_each_image_once_in_every_division(stripes):
    images = open_images(MeasureConfig(source=str(stripes), folds=4, repeats=2))
    assert not images.is_divided
    assert len(images.splits) == 8
    assert images.test_share == pytest.approx(1 / 3)
    divisions = [np.concatenate([split.test for split in images.splits[first : first + 4]]) for first in (0, 4)]
    for tested in divisions:
        assert sorted(tested.tolist()) == list(range(48))
    assert divisions[0].tolist() != divisions[1].tolist()
    for split in images.splits:
        assert not set(split.train) & set(split.test)
        assert np.bincount(images.labels[split.test]).tolist() == [6, 6]


def test_a_limit_takes_the_same_share_of_each_class():
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    chosen = draw_stratified(labels, 100)
    assert np.bincount(labels[chosen]).tolist() == [60, 30, 10]
    assert (np.diff(chosen) > 0).all()
    assert draw_stratified(labels, None).tolist() == draw_stratified(labels, 1000).tolist() == list(range(1000))


def test_images_that_cannot_be_compared_on_are_refused(stripes, images):
    with pytest.raises(DataError, match="has no labels"):
        open_images(MeasureConfig(source=str(images)))
    with pytest.raises(ConfigError, match=r"folds 30: class across of .* has 24 of the images, .* set folds=24, or"):
        open_images(MeasureConfig(source=str(stripes), folds=30))
    found = open_images(MeasureConfig(source=str(stripes)))
    assert choose_figure(MeasureConfig(), found.classes) == "auc"
    with pytest.raises(ConfigError, match="neighbours 39: there are only 38 images to search"):
        check_measure(MeasureConfig(source=str(stripes), neighbours=39), found)
    third = stripes / "neither"
    third.mkdir()
    for number in range(5):
        Image.new("RGB", (8, 8)).save(third / f"{number}.png")
    with pytest.raises(ConfigError, match=r"figure auc: is for two classes, and .* has 3; take top1 or"):
        check_measure(MeasureConfig(source=str(stripes), figure="auc"), open_images(MeasureConfig(source=str(stripes))))
    with pytest.raises(DataError, match="has one class only"):
        open_images(MeasureConfig(source=str(stripes), classes=("across",)))


def test_without_scikit_learn_the_command_says_what_installs_it():
    """Nor is SciPy there then, which comes with it."""
    code = """
import sys
sys.modules["scipy"] = sys.modules["sklearn"] = None  # as if they were not installed
from ehm.cli import main
sys.exit(main(["compare", "a", "b"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().endswith(f"scikit-learn is not installed; {build_install_command('tasks')} installs it")
    assert "Traceback" not in done.stderr
