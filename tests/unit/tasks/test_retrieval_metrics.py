"""Figures of a ranking: by hand with junk images, and beside definitions that are written another way."""

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from ehm.tasks.retrieval.answers import Answers
from ehm.tasks.retrieval.metrics import compute_average_precision, find_ranks, report_retrieval

NONE = np.zeros(0, np.int64)


def answers(easy=(), hard=(), junk=()):
    return Answers(*(np.array(part, np.int64) for part in (easy, hard, junk)))


def ranking(*orders):
    """Queries and a database whose products rank it as each of ``orders`` says."""
    database = np.eye(len(orders[0]), dtype=np.float32)
    queries = np.zeros((len(orders), len(orders[0])), np.float32)
    for query, order in zip(queries, orders, strict=True):
        query[list(order)] = np.arange(len(order), 0, -1)
    return queries, database


def test_a_ranking_with_junk_by_hand():
    # ranked: easy 2, junk 1, wrong 0, hard 4, wrong 5, easy 3
    report = report_retrieval(*ranking((2, 1, 0, 4, 5, 3)), [answers(easy=[2, 3], hard=[4], junk=[1])], revisited=True)
    medium, hard, easy = (report.protocols[name] for name in ("medium", "hard", "easy"))
    # medium: junk 1 goes, positives at ranks 0, 2, 4: (1 + 1)/2, (1/2 + 2/3)/2, (2/4 + 3/5)/2
    assert medium.map == pytest.approx((1 + (1 / 2 + 2 / 3) / 2 + (1 / 2 + 3 / 5) / 2) / 3)
    assert medium.precision == pytest.approx((1, 3 / 5, 3 / 5))  # all are found within five: ten is never reached
    # hard: easy ones are junk too, and wrong 0 comes first: (0/1 + 1/2)/2
    assert hard.map == pytest.approx(1 / 4)
    assert hard.precision == (0, 1 / 2, 1 / 2)
    # easy: 4 and 1 go, positives at ranks 0 and 3: (1 + 1)/2, (1/3 + 2/4)/2
    assert easy.map == pytest.approx((1 + (1 / 3 + 2 / 4) / 2) / 2)
    assert easy.precision == pytest.approx((1, 2 / 4, 2 / 4))
    assert report.score == medium.map
    assert list(report.figures)[:3] == ["map_medium", "map_hard", "map_easy"]


def test_queries_without_anything_to_find_do_not_count():
    report = report_retrieval(
        *ranking((0, 1, 2), (2, 1, 0)), [answers(easy=[0], junk=[1]), answers(easy=[0], hard=[1])], revisited=True
    )
    assert [report.protocols[name].queries for name in ("easy", "medium", "hard")] == [2, 2, 1]
    assert report.protocols["easy"].map == pytest.approx((1 + (0 + 1 / 2) / 2) / 2)
    assert report.protocols["hard"].map == pytest.approx((0 + 1 / 2) / 2)  # easy 0 is junk, wrong 2 comes first
    none = report_retrieval(*ranking((0, 1)), [answers(easy=[0])], revisited=True)
    assert math.isnan(none.protocols["hard"].map)
    assert none.figures["map_hard"] is None
    assert none.to_json()["protocols"]["hard"]["map"] is None


def walked(order, positive, junk):
    """Average precision as one walks down a list with a pencil: the area of a trapezoid at every step."""
    area = recall = right = seen = 0
    precision = 1.0
    for image in order:
        if image in junk:
            continue
        before = precision if seen else 1.0
        right, seen = right + (image in positive), seen + 1
        precision = right / seen
        area += (right / len(positive) - recall) * (before + precision) / 2
        recall = right / len(positive)
    return area


def test_it_is_the_area_that_a_walk_down_the_list_finds():
    rng = np.random.default_rng(0)
    for _ in range(200):
        order = rng.permutation(30)
        parts = rng.permutation(30)
        positive, junk = parts[: rng.integers(1, 10)], parts[10 : 10 + rng.integers(0, 10)]
        found = compute_average_precision(find_ranks(order, positive, junk))
        assert found == pytest.approx(walked(order, set(positive.tolist()), set(junk.tolist())))


def test_scikit_learn_counts_less_by_half_a_step_at_each_positive():
    rng = np.random.default_rng(1)
    for _ in range(50):
        truth, scores = rng.random(40) < 0.3, rng.random(40)
        truth[0] = True
        at = find_ranks(np.argsort(-scores), np.flatnonzero(truth))
        ours, theirs = compute_average_precision(at), average_precision_score(truth, scores)
        steps = np.array([(1 if rank == 0 else n / rank) - (n + 1) / (rank + 1) for n, rank in enumerate(at)])
        assert ours - theirs == pytest.approx(steps.mean() / 2)


def test_equal_ones_keep_the_order_of_their_numbers():
    flat = np.ones((1, 2), np.float32), np.ones((4, 2), np.float32)
    assert report_retrieval(*flat, [answers(easy=[0])], revisited=False).protocols["all"].map == 1
    assert report_retrieval(*flat, [answers(easy=[3])], revisited=False).protocols["all"].map == pytest.approx(
        (0 + 1 / 4) / 2
    )
