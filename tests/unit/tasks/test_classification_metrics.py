"""Figures of a classifier against scikit-learn's."""

import json

import numpy as np
import pytest
from sklearn import metrics as reference

from ehm.tasks.classification.metrics import (
    compute_confusion,
    compute_precision_recall_f1,
    compute_roc_auc,
    report_classification,
)


@pytest.fixture(params=range(5))
def answers(request):
    """Labels and scores of 60 samples in 2 to 10 classes; many scores are tied, some classes never predicted."""
    rng = np.random.default_rng(request.param)
    classes = 2 + 2 * request.param
    labels = rng.integers(0, classes, 60)
    scores = np.round(rng.normal(size=(60, classes)) + np.eye(classes)[labels], 1)
    scores[:, -1] -= 2 * (request.param % 2)
    return labels, scores, [f"class {number}" for number in range(classes)]


def test_counts_and_shares_are_scikit_learns(answers):
    labels, scores, classes = answers
    predicted = scores.argmax(1)
    result = report_classification(labels, scores, classes)
    assert result.samples == 60
    assert np.array_equal(result.confusion, reference.confusion_matrix(labels, predicted, labels=range(len(classes))))
    assert result.top1 == pytest.approx(reference.accuracy_score(labels, predicted))
    assert result.balanced_accuracy == pytest.approx(reference.balanced_accuracy_score(labels, predicted))
    expected = reference.precision_recall_fscore_support(labels, predicted, labels=range(len(classes)), zero_division=0)
    for ours, theirs in zip((result.precision, result.recall, result.f1, result.support), expected, strict=True):
        assert ours == pytest.approx(theirs)
    assert (result.auc is None) == (len(classes) > 2)
    assert (result.top5 is None) == (len(classes) <= 5)
    if result.top5 is not None:
        untied = scores - 1e-6 * np.arange(len(classes))  # of equal scores the lower class is before the higher
        expected = reference.top_k_accuracy_score(labels, untied, k=5, labels=range(len(classes)))
        assert result.top5 == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_auc_counts_ties_half(seed, decimals):
    rng = np.random.default_rng(seed)
    positive = rng.random(50) < 0.2 + 0.1 * seed
    scores = np.round(rng.normal(size=50) + positive, decimals).astype(np.float32)
    assert compute_roc_auc(positive, scores) == pytest.approx(reference.roc_auc_score(positive, scores))


def test_auc_of_a_report_is_of_the_second_class():
    labels = np.array([0, 0, 1, 1])
    scores = np.array([[2.0, 0.0], [1.0, 0.5], [0.0, 0.0], [0.0, 3.0]])
    assert report_classification(labels, scores, ["no", "yes"]).auc == 1
    assert report_classification(labels, scores[:, ::-1], ["no", "yes"]).auc == 0


def test_a_class_that_does_not_occur_does_not_count_in_balanced_accuracy():
    labels, predicted = np.array([0, 0, 1]), np.array([0, 2, 1])
    result = report_classification(labels, np.eye(3)[predicted], ["a", "b", "c"])
    assert result.balanced_accuracy == pytest.approx((1 / 2 + 1) / 2)
    assert result.recall == (0.5, 1, 0)
    assert np.array_equal(compute_confusion(labels, predicted, 3), [[1, 0, 1], [0, 1, 0], [0, 0, 0]])
    assert compute_precision_recall_f1(np.zeros((2, 2), np.int64))[2].tolist() == [0, 0]


def test_two_classes_of_which_one_is_absent_have_no_auc():
    assert report_classification(np.zeros(3, np.int64), np.eye(2)[[0, 1, 0]], ["a", "b"]).auc is None
    with pytest.raises(ValueError, match=r"positive: 0 of 3 are positive"):
        compute_roc_auc(np.zeros(3, bool), np.arange(3.0))


def test_nothing_to_measure_is_an_error():
    with pytest.raises(ValueError, match="labels"):
        report_classification(np.zeros(0, np.int64), np.zeros((0, 2)), ["a", "b"])


def test_a_report_is_json():
    result = report_classification(np.array([0, 1]), np.eye(2), ["a", "b"])
    assert json.loads(json.dumps(result.to_json()))["confusion"] == [[1, 0], [0, 1]]
