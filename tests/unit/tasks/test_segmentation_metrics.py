"""The figures of a segmentation, against scikit-learn and against ADE20K's protocol, counted by hand."""

import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score, recall_score

from ehm.tasks.segmentation.metrics import count_pixels, report_segmentation

NAMES = ("a", "b", "c", "d", "e")


def images(seed, classes, count=6):
    """Maps and predictions of several sizes, a tenth of the pixels ignored."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        size = rng.integers(5, 30, 2)
        labels = rng.integers(0, classes, size).astype(np.uint8)
        predicted = np.where(rng.random(size) < 0.6, labels, rng.integers(0, classes, size)).astype(np.uint8)
        labels[rng.random(size) < 0.1] = 255
        yield labels, predicted


def test_they_are_scikit_learns_over_the_pixels_of_all_images():
    pairs = list(images(0, 5))
    counts = sum(count_pixels(labels, predicted, 5) for labels, predicted in pairs)
    labels, predicted = (np.concatenate([each[side].ravel() for each in pairs]) for side in (0, 1))
    true, called = labels[labels != 255], predicted[labels != 255]
    np.testing.assert_array_equal(counts, confusion_matrix(true, called))
    found = report_segmentation(counts, NAMES, 6)
    np.testing.assert_allclose(found.iou, jaccard_score(true, called, average=None))
    np.testing.assert_allclose(found.accuracy, recall_score(true, called, average=None))
    assert found.miou == pytest.approx(jaccard_score(true, called, average="macro"))
    assert found.macc == pytest.approx(recall_score(true, called, average="macro"))
    assert found.aacc == pytest.approx(accuracy_score(true, called))
    assert found.pixels == tuple(np.bincount(true))
    by_image = [jaccard_score(t[t != 255], p[t != 255], average="macro") for t, p in pairs]
    assert found.miou != pytest.approx(np.mean(by_image))  # which would be another protocol


def test_a_class_that_does_not_occur_counts_only_where_it_is_predicted():
    #        true 0 0 1 1 ignored, called 0 2 1 1 3: class 2 is called once and never true, 3 and 4 play no part
    counts = count_pixels(np.array([[0, 0, 1, 1, 255]], np.uint8), np.array([[0, 2, 1, 1, 3]], np.uint8), 5)
    found = report_segmentation(counts, NAMES, 1)
    assert found.iou == (0.5, 1.0, 0.0, None, None)
    assert found.accuracy == (0.5, 1.0, None, None, None)
    assert found.miou == pytest.approx((0.5 + 1 + 0) / 3)
    assert found.macc == pytest.approx((0.5 + 1) / 2)
    assert found.aacc == pytest.approx(3 / 4)


def test_the_report_is_json_and_a_table(capsys):
    found = report_segmentation(sum(count_pixels(*pair, 5) for pair in images(1, 5)), NAMES, 6)
    assert json.loads(json.dumps(found.to_json()))["iou"] == list(found.iou)
    assert (found.figures["miou"], found.score) == (found.miou, found.miou)
    found.show()
    said = capsys.readouterr().out
    assert f"mIoU {found.miou:.2%}, aAcc {found.aacc:.2%}, mAcc {found.macc:.2%} on 6 images" in said
    many = report_segmentation(np.eye(30, dtype=np.int64) + 1, [f"class {n}" for n in range(30)], 1)
    many.show()
    assert "the 20 classes of lowest IoU" in capsys.readouterr().out


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match="no pixel"):
        report_segmentation(count_pixels(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8), 2), NAMES[:2], 1)
    with pytest.raises(ValueError, match="predicted: has the shape"):
        count_pixels(np.zeros((2, 2), np.uint8), np.zeros((1, 2), np.uint8), 2)
