"""The page of a vision-language run: figures beside those without images, and answers with their pictures."""

from typing import Literal

from PIL import Image
from question_files import write_easy_vqa
from run_folders import HTML, find_by_class, parse_page, read_table, read_text, write_run

from ehm.config import ModelSource, OptimConfig, QuestionSet, TaskConfig, VisionLanguageData
from ehm.data.questions import Question
from ehm.data.sources.questions.layouts import open_questions
from ehm.report.answers import ShownAnswer, read_answers, save_answers
from ehm.report.page import render_page
from ehm.report.record import read_record
from ehm.tasks.vision_language.examples import choose_examples, write_answers
from ehm.tasks.vision_language.metrics import VisionLanguageReport, report_benchmark


class Settings(TaskConfig):
    """The keys of a vision-language run that its report reads."""

    task: Literal["vision_language"] = "vision_language"
    model: ModelSource = ModelSource()
    data: VisionLanguageData = VisionLanguageData()
    optim: OptimConfig = OptimConfig(steps=40, batch_size=8, warmup_steps=4)


def answered(tmp_path):
    """Questions of easy-vqa, and a model that calls everything red and says yes to all."""
    source = open_questions(QuestionSet(source=str(write_easy_vqa(tmp_path / "easy"))), "validation")
    questions = [source.question(index) for index in range(len(source))]
    texts = [{"yes/no": "Yes", "colour": "red", "shape": "circle"}[each.kind] for each in questions]
    return source, questions, texts


def test_answers_of_every_kind_are_chosen_right_and_wrong(tmp_path):
    _, questions, texts = answered(tmp_path)
    assert sorted(choose_examples(questions, texts)) == list(range(9))
    five = choose_examples(questions, texts, 5)
    kinds = [(questions[place].kind, texts[place].lower() in questions[place].answers) for place in five]
    # there is no wrong shape
    assert set(kinds) == {("colour", False), ("colour", True), ("shape", True), ("yes/no", False), ("yes/no", True)}
    assert five == choose_examples(questions, texts, 5)


def test_answers_are_kept_with_small_pictures(tmp_path):
    source, _, texts = answered(tmp_path)
    (tmp_path / "easy" / "test" / "images" / "1.png").write_bytes(b"")
    (tmp_path / "run").mkdir()
    write_answers(tmp_path / "run", source, range(9), texts, ["no"] * 9)
    kept = read_answers(tmp_path / "run")
    assert len(kept) == 9
    for shown, picture in kept:
        assert (picture is None) == shown.image.endswith("1.png")
        assert shown.blank == "no"
    shown, picture = next(each for each in kept if each[0].kind == "yes/no" and each[0].truth == "yes")
    assert (shown.given, shown.score) == ("Yes", 1.0)
    with Image.open(picture) as image:
        assert image.size == (8, 8)
    (tmp_path / "run" / "answers" / "answers.json").write_text('[{"image": 1}]')
    assert read_answers(tmp_path / "run") == []


def test_the_truth_of_ten_people_is_their_commonest_answers():
    votes = Question("What?", ("a dog",) * 6 + ("puppy",) * 2 + ("cat", "pug"), "other", "a.jpg")
    assert votes.truth == "a dog (6), puppy (2), cat (1)"
    assert Question("What?", (), "other", "a.jpg").truth == ""


def test_the_page_has_figures_by_kind_and_answers(tmp_path):
    source, questions, texts = answered(tmp_path)
    report = VisionLanguageReport((report_benchmark("easy-vqa", questions, texts, ["yes"] * 9),))
    lines = [{"step": 20 * n, "epoch": n / 2, "loss": 1.0 / n, **report.figures} for n in (1, 2)]
    run = write_run(tmp_path / "run", Settings(), lines, {"part": "val", **report.to_json()})
    write_answers(run, source, range(9), texts, ["<b>yes</b>"] * 9)
    save_answers(run, [*read_pairs(run), (ShownAnswer("x.png", "other", "What? {{ 7 * 7 }}", "", "", None), None)])
    text = render_page(read_record(run))
    tree = parse_page(text)
    assert read_text(next(tree.iter(f"{HTML}h1"))) == "easy-vqa"
    (table,) = [table for table in tree.iter(f"{HTML}table") if "blank images" in read_text(table)]
    assert read_table(table) == [
        ["questions", "commonest answer", "blank images", "accuracy", "questions"],
        ["colour", "33.3%", "0.0%", "33.3%", "3"],
        ["shape", "100.0%", "0.0%", "100.0%", "3"],
        ["yes/no", "66.7%", "33.3%", "33.3%", "3"],
    ]
    assert "easy-vqa (val), 9 questions" in [read_text(each) for each in tree.iter(f"{HTML}h3")]
    warnings = [read_text(each) for each in tree.iter(f"{HTML}li") if "warning" in each.get("class", "")]
    assert any("no better than the commonest answer of each kind of question (66.7%)" in each for each in warnings)
    cards = [read_text(card) for card in find_by_class(tree, "mistakes")[0].iter(f"{HTML}dl")]
    assert len(cards) == 10
    assert "what color is the shape? answer red (right) truth red blank <b>yes</b>" in [
        card.replace("answer", " answer ").replace("truth", " truth ").replace("blank", " blank ").replace("  ", " ")
        for card in cards
    ]
    assert any("{{ 7 * 7 }}" in card and "nothing" in card for card in cards)
    assert "Answers" in [read_text(each) for each in tree.iter(f"{HTML}h4")]


def read_pairs(run):
    """The answers that a run keeps, with their images."""
    return [(shown, None if path is None else Image.open(path).convert("RGB")) for shown, path in read_answers(run)]
