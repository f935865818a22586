"""Figures of answers beside those of language alone, and the files that official programs read."""

import json
import math
from pathlib import Path

import pytest

from ehm.config import QuestionSet
from ehm.data.questions import Question
from ehm.data.sources.questions.objects import ask_count, ask_existence
from ehm.tasks.vision_language.baselines import find_commonest_answer, score_commonest
from ehm.tasks.vision_language.metrics import VisionLanguageReport, report_benchmark
from ehm.tasks.vision_language.predictions import list_predictions, write_predictions

PUBLISHED = json.loads(
    (Path(__file__).parents[2] / "data" / "questions" / "gvtbench_answers.json").read_text(encoding="utf-8")
)
COLOURS = [Question("what color is it?", (answer,), "colour", "a.png") for answer in ("red", "red", "blue")]
CHOICES = [Question("is it red?", (answer,), "yes/no", "a.png") for answer in ("yes", "no", "yes", "yes")]


def published(name):
    """The questions of a file of GVTBench, as far as their answers and objects tell."""
    questions = []
    for subject, answers in PUBLISHED[name].items():
        for answer, number in answers.items():
            if name.endswith("oc"):
                question = ask_count(subject, answer, "a.jpg", 1, 3)
            else:
                question = ask_existence(subject, answer == "Yes.", "a.jpg", 1, 3)
            questions += [question] * number
    return questions


@pytest.mark.parametrize(
    ("name", "commonest", "of_each_object"),
    [("coco_oc", 0.543, 0.545), ("coco_mci", 0.504, 0.668), ("vcr_mci", 0.504, 0.858), ("vcr_oc", 0.362, 0.476)],
)
def test_language_alone_reaches_on_gvtbench_what_was_counted(name, commonest, of_each_object):
    questions = published(name)
    assert len(questions) == 10_000
    assert score_commonest(questions, lambda question: question.kind) == pytest.approx(commonest, abs=6e-4)
    assert score_commonest(questions, lambda question: question.subject) == pytest.approx(of_each_object, abs=6e-4)


def test_the_plurals_are_those_of_gvtbench():
    inflect = pytest.importorskip("inflect", reason="plurals are made by inflect")
    plural = inflect.engine().plural
    assert {plural(name) for name in PUBLISHED["coco_mci"]} == set(PUBLISHED["coco_oc"])


def test_figures_are_given_by_kind_beside_those_without_images():
    texts = ["red", "Blue.", "blue", "yes", "no", "no", "yes"]
    blank = ["red", "red", "red", "yes", "yes", "yes", "yes"]
    report = report_benchmark("easy", COLOURS + CHOICES, texts, blank)
    assert (report.questions, report.accuracy, report.blank) == (7, pytest.approx(5 / 7), pytest.approx(5 / 7))
    assert (report.commonest, report.exact, report.commonest_of_subject) == (pytest.approx(5 / 7), None, None)
    choices, colours = report.kinds
    assert (choices.name, choices.questions, choices.accuracy) == ("yes/no", 4, 0.75)
    assert (colours.name, colours.accuracy, colours.blank) == ("colour", pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert colours.commonest == pytest.approx(2 / 3)
    assert report.groups == ()
    whole = VisionLanguageReport((report,))
    assert next(iter(whole.figures)) == "accuracy"
    assert whole.score == whole.figures["accuracy"] == pytest.approx(5 / 7)
    assert whole.figures["accuracy_yes_no"] == 0.75
    assert json.loads(json.dumps(whole.to_json()))["benchmarks"][0]["kinds"][1]["name"] == "colour"


def test_counts_have_errors_and_groups():
    questions = [ask_count("cats", str(count), "a.jpg", 1, 3) for count in (1, 2, 4, 9)]
    report = report_benchmark("count", questions, ["one", "3", "seven", "many"])
    assert report.accuracy == 0.25
    assert report.mean_error == pytest.approx((0 + 1 + 3 + 9) / 4)
    assert report.root_mean_square_error == pytest.approx(math.sqrt((0 + 1 + 9 + 81) / 4))
    assert [(group.name, group.accuracy) for group in report.groups] == [("0-2", 0.5), ("3-5", 0), ("9 or more", 0)]
    # a constant answer cannot know which group it is asked in
    assert [group.commonest for group in report.groups] == [0.5, 0, 0]
    assert report.blank is None


def test_votes_are_counted_by_both_rules():
    votes = [Question("What?", ("dog",) * 5 + ("cat",) * 5, "other", "a.jpg", "what")] * 2
    report = report_benchmark("votes", votes, ["a dog or so", "cat"])
    assert (report.accuracy, report.exact) == (1, 0.5)
    assert find_commonest_answer(votes) == "dog"


def test_questions_without_published_answers_are_not_measured(capsys):
    unpublished = [Question("What?", (), "other", "a.jpg", identifier=5)]
    report = report_benchmark("test", unpublished, ["A dog. It barks."])
    assert (report.questions, report.unpublished, report.accuracy, report.commonest) == (0, 1, None, None)
    assert VisionLanguageReport((report,)).score == 0
    VisionLanguageReport((report,)).show()
    assert "test: 1 questions without published answers: nothing to measure" in capsys.readouterr().out
    assert list_predictions(unpublished, ["A dog. It barks."]) == [{"question_id": 5, "answer": "A dog"}]


def test_of_several_benchmarks_the_mean_counts(capsys):
    first = report_benchmark("easy", COLOURS, ["red"] * 3, [""] * 3)
    second = report_benchmark("VCR identify", CHOICES, ["yes"] * 4)
    report = VisionLanguageReport((first, second))
    assert report.score == pytest.approx((2 / 3 + 3 / 4) / 2)
    assert report.figures["accuracy_vcr_identify"] == 0.75
    assert report.figures["accuracy_blank"] == 0
    report.show()
    printed = capsys.readouterr().out
    assert "easy: accuracy 66.7%, on blank images 0.0%, with the commonest answer of each kind 66.7%" in printed
    assert "mean of 2 benchmarks: accuracy 70.8%" in printed


def test_predictions_are_files_of_the_official_programs(tmp_path):
    votes = Question("What?", ("dog",) * 10, "other", "a.jpg", identifier=7)
    there = ask_existence("cat", False, "b.jpg", 42102, 3)
    (only,) = write_predictions(tmp_path, [("vqa", [votes], ["A dog. Yes."])])
    assert only == tmp_path / "predictions.json"
    assert json.loads(only.read_text()) == [{"question_id": 7, "answer": "A dog"}]
    paths = write_predictions(tmp_path, [("vqa", [votes], ["dog"]), ("a/b c", [there], ["No, it does not."])])
    assert [path.name for path in paths] == ["predictions_vqa.json", "predictions_a_b_c.json"]
    assert json.loads(paths[1].read_text()) == [
        {"pred": "No, it does not.", "gt": "No.", "image_id": 42102, "n_obj_exist": 3}
    ]


def test_a_set_is_named_by_its_source():
    assert QuestionSet(source="/data/gvtbench/coco_mci.json").title == "coco_mci"
    assert QuestionSet(source="/data/coco/", questions="count").title == "coco count"
    assert QuestionSet(source="easy-vqa").title == "easy-vqa"
    assert QuestionSet(source="/data/coco", name="mine").title == "mine"
