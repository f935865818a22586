"""The worst mistakes of a classifier, against SciPy's softmax."""

import json
import os

import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

from ehm.config import DataConfig
from ehm.data import open_source
from ehm.report.mistakes import read_mistakes
from ehm.tasks.classification.mistakes import IndexedMistake, find_mistakes, write_mistakes


@pytest.mark.parametrize("seed", range(3))
def test_the_most_confident_wrong_answers_come_first(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, 80)
    logits = rng.normal(0, 3, (80, 5)).astype(np.float32)
    indices = np.sort(rng.choice(1000, 80, replace=False))
    found = find_mistakes(indices, labels, logits, "01234", most=10)
    probabilities = softmax(logits.astype(np.float64), axis=1)
    expected = []
    for row in range(80):
        called = int(np.argmax(probabilities[row]))
        if called != labels[row]:
            expected.append((-probabilities[row, called], indices[row], str(labels[row]), str(called)))
    expected = sorted(expected)[:10]
    assert [(each.index, each.true, each.predicted) for each in found] == [row[1:] for row in expected]
    np.testing.assert_allclose([each.confidence for each in found], [-row[0] for row in expected], rtol=1e-6)


def test_large_logits_do_not_overflow_and_right_answers_are_no_mistakes():
    logits = np.array([[1e30, 0.0], [0.0, 5000.0]], np.float32)
    assert find_mistakes(np.arange(2), np.array([0, 1]), logits, "ab") == []
    assert [each.confidence for each in find_mistakes(np.arange(2), np.array([1, 0]), logits, "ab")] == [1.0, 1.0]


def test_they_are_kept_with_small_pictures_whatever_their_names(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    for place, colour in ((f"a/{name}", "red"), ("b/<i>.png", "lime")):
        (tmp_path / "data" / place).parent.mkdir(parents=True)
        Image.new("RGB", (900, 600), colour).save(tmp_path / "data" / place)
    source = open_source(DataConfig(source=str(tmp_path / "data")))
    mistakes = [IndexedMistake(1, "b", "a", 0.9), IndexedMistake(0, "a", "b", 0.8)]
    (tmp_path / "run").mkdir()
    write_mistakes(tmp_path / "run", mistakes, source)
    (first, picture), (second, _) = read_mistakes(tmp_path / "run")
    assert (first.true, first.predicted, first.confidence) == ("b", "a", 0.9)
    assert first.image.endswith("b/<i>.png")
    assert second.image.endswith(r"caf\xe9.png")
    with Image.open(picture) as image:
        assert max(image.size) <= 224
        red, green, blue = image.convert("RGB").getpixel((50, 50))
    assert green > 200 > max(red, blue)

    # a measurement without mistakes leaves none of those before it
    write_mistakes(tmp_path / "run", [], source)
    assert read_mistakes(tmp_path / "run") == []
    assert json.loads((tmp_path / "run" / "mistakes" / "mistakes.json").read_text()) == []


def test_an_image_that_is_gone_is_listed_without_a_picture(tmp_path):
    for place in ("a/0.png", "b/0.png"):
        (tmp_path / "data" / place).parent.mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "data" / place)
    source = open_source(DataConfig(source=str(tmp_path / "data")))
    (tmp_path / "data" / "a" / "0.png").write_bytes(b"")
    (tmp_path / "run").mkdir()
    write_mistakes(tmp_path / "run", [IndexedMistake(0, "a", "b", 0.8)], source)
    ((mistake, picture),) = read_mistakes(tmp_path / "run")
    assert (mistake.file, picture) == ("", None)
