"""Several labels an image: figures against scikit-learn, losses and weights against torch and timm."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import expit
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score
from sklearn.utils.class_weight import compute_class_weight
from timm.loss import BinaryCrossEntropy
from torch import nn

from ehm.analysis.neighbours import vote_by_neighbours, vote_for_labels
from ehm.backends.torch.learners.classification import binary_cross_entropy, soft_cross_entropy
from ehm.config import DataConfig, FinetuneConfig
from ehm.data import open_source
from ehm.data.sampler import Sampler
from ehm.errors import ConfigError
from ehm.probabilities import compute_sigmoid
from ehm.tasks.classification.mistakes import find_label_mistakes
from ehm.tasks.classification.mixing import make_soft_targets, smooth_labels
from ehm.tasks.classification.multi_label_metrics import choose_thresholds, report_labels
from ehm.tasks.classification.prediction_table import write_label_predictions
from ehm.tasks.classification.weighting import (
    balance_images,
    balance_labelled_images,
    weigh_classes,
    weigh_positives,
)

CLASSES = ("a", "b", "c", "d")


@pytest.fixture
def answers():
    """Targets and probabilities with ties; nobody has the last label."""
    rng = np.random.default_rng(0)
    targets = rng.random((200, 4)) < [0.5, 0.2, 0.05, 0]
    probabilities = np.round(np.clip(0.3 * targets + rng.random((200, 4)) * 0.7, 0, 1), 2)
    return targets, probabilities


def test_the_figures_are_those_of_scikit_learn(answers):
    targets, probabilities = answers
    thresholds = (0.5, 0.4, 0.6, 0.9)
    report = report_labels(targets, probabilities, CLASSES, thresholds)
    predicted = probabilities >= np.array(thresholds)
    for figure, function in (
        (report.precision, precision_score),
        (report.recall, recall_score),
        (report.f1, f1_score),
    ):
        np.testing.assert_allclose(figure, function(targets, predicted, average=None, zero_division=0))
    occur = targets[:, :3]
    precision = average_precision_score(occur, probabilities[:, :3], average=None)
    np.testing.assert_allclose(report.average_precision[:3], precision)
    np.testing.assert_allclose(report.auc[:3], roc_auc_score(occur, probabilities[:, :3], average=None))
    assert report.average_precision[3] is report.auc[3] is None
    assert report.mean_ap == pytest.approx(average_precision_score(occur, probabilities[:, :3], average="macro"))
    assert report.macro_f1 == pytest.approx(f1_score(occur, predicted[:, :3], average="macro"))
    assert report.micro_f1 == pytest.approx(f1_score(targets, predicted, average="micro"))
    assert report.exact == (targets == predicted).all(axis=1).mean()
    assert report.support == tuple(targets.sum(axis=0))
    assert not report.chosen_here


def test_a_threshold_has_the_highest_f1_of_all(answers):
    targets, probabilities = answers
    thresholds = choose_thresholds(targets, probabilities)
    for label in range(3):
        possible = [f1_score(targets[:, label], probabilities[:, label] >= cut) for cut in np.arange(0.005, 1, 0.01)]
        chosen = f1_score(targets[:, label], probabilities[:, label] >= thresholds[label])
        assert chosen == pytest.approx(max(possible), abs=1e-12)
        # halfway between two probabilities, so that rounding in another precision changes no answer
        assert np.abs(probabilities[:, label] - thresholds[label]).min() > 1e-3
    assert thresholds[3] == 0.5
    assert choose_thresholds(np.array([[True], [True]]), np.array([[0.2], [0.4]])) == (pytest.approx(0.1),)
    perfect = choose_thresholds(np.array([[False], [True]]), np.array([[0.1], [0.9]]))
    assert perfect == (pytest.approx(0.5),)


def test_losses_are_those_of_torch_and_timm():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator) * 5
    targets = torch.rand(6, 4, generator=generator)
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0])
    expected = nn.BCEWithLogitsLoss(pos_weight=weights)(logits, targets)
    assert torch.allclose(binary_cross_entropy(logits.bfloat16().float(), targets, weights), expected, rtol=1e-2)
    assert torch.equal(binary_cross_entropy(logits, targets, weights), expected)
    assert torch.equal(binary_cross_entropy(logits, targets), BinaryCrossEntropy(smoothing=0)(logits, targets))
    # weights of classes are taken into the targets
    labels = torch.tensor([0, 1, 2, 3, 1, 2])
    smooth = torch.from_numpy(make_soft_targets(labels.numpy(), 4, 0.1))
    weighted = nn.CrossEntropyLoss(weight=weights)(logits, smooth)
    assert torch.allclose(soft_cross_entropy(logits, smooth * weights), weighted)


def test_smoothed_labels_move_towards_one_half():
    assert smooth_labels(np.array([[True, False]]), 0.2).tolist() == [[pytest.approx(0.9), pytest.approx(0.1)]]


def test_probabilities_are_those_of_scipy_without_overflow():
    logits = np.array([-1e30, -800, -40, -1, 0, 3, 50, 1e30], np.float32)
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_allclose(compute_sigmoid(logits), expit(logits.astype(np.float64)), rtol=1e-12)


def test_balanced_weights_are_those_of_scikit_learn():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    counts = np.bincount(labels)
    config = FinetuneConfig(class_weights="balanced")
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(weigh_classes(counts, config), expected, rtol=1e-6)
    np.testing.assert_allclose(weigh_positives(counts, 100, config), [40 / 60, 70 / 30, 90 / 10], rtol=1e-6)
    assert weigh_classes(counts, FinetuneConfig()) is None
    assert weigh_positives(counts, 100, FinetuneConfig(class_weights=[1, 2, 3])).tolist() == [1, 2, 3]
    with pytest.raises(ConfigError, match=r"class_weights: gives 2 weights, and data.source has 3 classes"):
        weigh_classes(counts, FinetuneConfig(class_weights=[1, 2]))


def test_balanced_sampling_draws_all_classes_equally_often():
    labels = np.repeat([0, 1, 2], [900, 90, 10])
    indices = np.arange(500, 1500)
    sampler = Sampler(indices, 100, 0, True, True, chances=balance_images(labels))
    drawn = np.concatenate([plan.indices for plan in sampler.plan_batches(range(30))])
    shares = np.bincount(labels[drawn - 500]) / len(drawn)
    np.testing.assert_allclose(shares, 1 / 3, atol=0.03)
    # the same again wherever it goes on
    again = np.concatenate([plan.indices for plan in sampler.plan_batches(range(17, 30))])
    assert np.array_equal(again, drawn[1700:])
    halves = [Sampler(indices, 100, 0, True, True, rank, 2, balance_images(labels)) for rank in (0, 1)]
    first = [next(half.plan_batches([3])).indices for half in halves]
    assert np.array_equal(np.concatenate(first), drawn[300:400])


def test_images_of_several_labels_are_drawn_by_their_rarest():
    targets = np.array([[1, 0], [1, 0], [1, 1], [0, 0], [0, 0]], bool)
    expected = np.array([1 / 3, 1 / 3, 1, 1 / 2, 1 / 2])
    np.testing.assert_allclose(balance_labelled_images(targets), expected / expected.sum())


def test_neighbours_vote_for_each_of_their_labels():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 8)).astype(np.float32)
    queries = rng.normal(size=(7, 8)).astype(np.float32)
    labels = rng.integers(0, 3, 50)
    # of one label each, the shares are the votes
    one = vote_for_labels(features, labels[:, None] == np.arange(3), queries, 5)
    np.testing.assert_allclose(one, vote_by_neighbours(features, labels, queries, 3, 5))
    assert np.allclose(vote_for_labels(features, np.ones((50, 2), bool), queries, 5), 1)


def test_mistakes_and_predictions_name_labels(tmp_path):
    for number in range(3):
        (tmp_path / "data").mkdir(exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "data" / f"{number}.png")
    source = open_source(DataConfig(source=str(tmp_path / "data")))
    targets = np.array([[True, True], [False, False], [True, False]])
    probabilities = np.array([[0.9, 0.2], [0.1, 0.8], [0.6, 0.1]])
    thresholds = (0.7, 0.5)
    found = find_label_mistakes(np.arange(3), targets, probabilities, thresholds, ("red", "blue"))
    assert [(each.index, each.true, each.predicted) for each in found] == [
        (0, "blue", "not blue"),
        (1, "not blue", "blue"),
        (2, "red", "not red"),
    ]
    assert [each.confidence for each in found] == pytest.approx([0.8, 0.8, 0.4])
    path = write_label_predictions(tmp_path, source, np.arange(3), targets, probabilities, thresholds, ("red", "blue"))
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    assert [(row["true"], row["predicted"]) for row in rows] == [("red;blue", "red"), ("", "blue"), ("red", "")]
    assert rows[1]["image"].endswith("data/1.png")
    assert float(rows[2]["probability of red"]) == 0.6
