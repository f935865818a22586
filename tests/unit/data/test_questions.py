"""Sets of questions on disk: what is recognised, what is read of it, and what is refused."""

import json
import pickle
from collections import Counter

import numpy as np
import pytest
from question_files import (
    GVTBENCH_COUNT,
    GVTBENCH_MCI,
    OBJECTS,
    write_coco,
    write_easy_vqa,
    write_image,
    write_json,
    write_vcr,
    write_vqa,
)

from ehm.config import QuestionSet, VisionLanguageData
from ehm.data import Loader, TrainTransform
from ehm.data.questions import draw_answer, names_a_side
from ehm.data.sources.identity import hash_images, identify_source
from ehm.data.sources.questions import easy_vqa
from ehm.data.sources.questions.gvtbench import write_gvtbench
from ehm.data.sources.questions.layouts import open_questions
from ehm.data.sources.questions.mixture import open_data_questions, weigh_questions
from ehm.data.sources.questions.objects import ObjectCounts, make_existence_questions
from ehm.errors import DataError


def opened(source, part="train", **keys):
    return open_questions(QuestionSet(source=str(source), **keys), part)


def listed(source):
    return [source.question(index) for index in range(len(source))]


def test_easy_vqa_is_read_by_kind(tmp_path):
    source = opened(write_easy_vqa(tmp_path))
    assert (len(source), source.split, source.labels, source.classes) == (9, "train", None, ())
    assert source.notes == ("easy-vqa, the train part: 9 questions about 3 images",)
    first = source.question(0)
    assert (first.text, first.answers, first.kind, first.rule) == (
        "what color is the shape?",
        ("red",),
        "colour",
        "text",
    )
    assert first.image == source.name(0) == str(tmp_path / "train" / "images" / "0.png")
    assert Counter(each.kind for each in listed(source)) == {"colour": 3, "yes/no": 3, "shape": 3}
    assert source.load(3).getpixel((0, 0)) == (30, 30, 230)
    assert opened(tmp_path, "validation").split == "val"


def test_the_package_of_easy_vqa_has_what_its_page_says():
    pytest.importorskip("easy_vqa", reason="easy-vqa is a package of its own")
    source = opened("easy-vqa", "validation")
    assert len(source) == 9673
    kinds = Counter(each.kind for each in listed(source))
    assert kinds["yes/no"] == 7136
    assert set(kinds) == {"yes/no", "colour", "shape"}
    assert len({each.answers for each in listed(source) if each.kind == "colour"}) == 8


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(easy_vqa, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="easy-vqa: its questions are not installed; pip install easy-vqa"):
        opened("easy-vqa")


def test_a_limit_is_drawn_once(tmp_path):
    write_easy_vqa(tmp_path)
    some = listed(opened(tmp_path, limit=4))
    assert some == listed(opened(tmp_path, limit=4))
    assert [each for each in listed(opened(tmp_path)) if each in some] == some
    assert len(opened(tmp_path, limit=100)) == 9


def test_a_worker_gets_a_copy_and_batches_have_the_indices_of_questions(tmp_path):
    source = opened(write_easy_vqa(tmp_path))
    assert listed(pickle.loads(pickle.dumps(source))) == listed(source)
    loader = Loader(source, TrainTransform((8, 8)), batch_size=4, seed=0, shuffle=True, drop_last=True, workers=0)
    with loader:
        batch = next(loader.batches(0, 1))
    assert batch.images.shape == (4, 8, 8, 3)
    for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
        assert (image == source.load(index).getpixel((0, 0))).all()


def test_vqa_is_read_with_ten_answers_and_their_types(tmp_path):
    source = opened(write_vqa(tmp_path))
    assert (len(source), source.split) == (4, "train")
    assert source.notes == ("VQAv2, train2014: 4 questions about 2 images",)
    question = source.question(1)
    assert question.answers == ("no", *["a cat"] * 9)
    assert (question.kind, question.group, question.identifier) == ("other", "what is", 9001)
    assert question.image.endswith("COCO_train2014_000000000009.jpg")
    assert question.has_votes
    assert opened(tmp_path, "validation").name(0).endswith("COCO_val2014_000000000009.jpg")


def test_vqa_lies_in_folders_of_its_own_too(tmp_path):
    write_vqa(tmp_path, ["train2014"])
    for kind in ("Questions", "Annotations"):
        (tmp_path / kind).mkdir()
    (tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json").rename(
        tmp_path / "Questions" / "v2_OpenEnded_mscoco_train2014_questions.json"
    )
    (tmp_path / "v2_mscoco_train2014_annotations.json").rename(
        tmp_path / "Annotations" / "v2_mscoco_train2014_annotations.json"
    )
    (tmp_path / "Images" / "mscoco").mkdir(parents=True)
    (tmp_path / "train2014").rename(tmp_path / "Images" / "mscoco" / "train2014")
    assert (len(opened(tmp_path)), opened(tmp_path).split) == (4, "all")
    file = tmp_path / "Questions" / "v2_OpenEnded_mscoco_train2014_questions.json"
    assert listed(opened(file)) == listed(opened(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "Images" / "mscoco").rename(elsewhere)
    assert len(opened(tmp_path, images=str(elsewhere))) == 4
    with pytest.raises(DataError, match=r"its images should lie in .*train2014, and there is no such folder"):
        opened(tmp_path)


def test_a_test_part_has_no_answers_and_is_not_trained_on(tmp_path):
    write_vqa(tmp_path, ["test2015"])
    source = opened(tmp_path, "validation")
    assert source.question(0).answers == ()
    assert "without answers: predictions alone" in source.notes[0]
    with pytest.raises(DataError, match="test2015 of VQAv2 has no answers, so that nothing can be trained on it"):
        opened(tmp_path)


def test_what_is_wrong_with_vqa_is_named(tmp_path):
    write_vqa(tmp_path, ["train2014"])
    annotations = tmp_path / "v2_mscoco_train2014_annotations.json"
    content = json.loads(annotations.read_text())
    removed = content["annotations"].pop()
    write_json(annotations, content)
    with pytest.raises(DataError, match=r"1 of its question ids are not in .*annotations.json: 25001;"):
        opened(tmp_path)
    removed["answers"].pop()
    content["annotations"].append(removed)
    write_json(annotations, content)
    with pytest.raises(DataError, match="question 25001 has 9 answers; VQAv2 has 10 of each"):
        opened(tmp_path)
    annotations.unlink()
    with pytest.raises(DataError, match=r"its answers should stand in v2_mscoco_train2014_annotations\.json"):
        opened(tmp_path)


def test_missing_images_are_counted(tmp_path):
    write_vqa(tmp_path, ["train2014"])
    (tmp_path / "train2014" / "COCO_train2014_000000000025.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of its images are not in .*train2014: COCO_train2014_000000000025.jpg;"):
        opened(tmp_path)


def test_counting_questions_count_what_can_be_counted(tmp_path):
    pytest.importorskip("inflect", reason="plurals are made by inflect")
    source = opened(write_coco(tmp_path), questions="count")
    asked = {(each.identifier, each.subject): each for each in listed(source)}
    # the crowd of image 8 and the ten mice of image 9 are left out
    assert {key: each.answers[0] for key, each in asked.items()} == {
        (7, "person"): "2",
        (7, "mouse"): "1",
        (8, "traffic light"): "3",
    }
    assert asked[7, "mouse"].text == "How many mice are there in the image?"
    assert (asked[7, "mouse"].objects, asked[7, "mouse"].rule, asked[7, "mouse"].group) == (3, "number", "0-2")
    assert asked[8, "traffic light"].group == "3-5"
    assert source.split == "train"
    assert source.notes == (
        "counting questions made of COCO's format by instances_train2017.json: 3 questions about 2 images",
    )


def test_half_of_the_identification_questions_are_true(tmp_path):
    source = opened(write_coco(tmp_path), "validation", questions="identify")
    questions = listed(source)
    names = {1: "person", 74: "mouse", 10: "traffic light"}
    for each in questions:
        is_there = each.subject in {names[abs(number)] for number in OBJECTS[each.identifier]}
        assert each.answers == ("Yes" if is_there else "No",)
        assert each.text == f"Does {each.subject} exist in the image?"
    # five pairs of an image and an object that it has, and as many without
    assert Counter(each.answers[0] for each in questions) == {"Yes": 5, "No": 5}
    assert len({(each.identifier, each.subject) for each in questions}) == 10
    assert questions == listed(opened(tmp_path, "validation", questions="identify"))
    assert Counter(each.answers[0] for each in listed(opened(tmp_path, questions="identify", limit=4))) == {
        "Yes": 2,
        "No": 2,
    }


def test_absent_objects_are_asked_about_as_often_as_each_other():
    counts = np.zeros((600, 4), np.int32)
    counts[:, 0] = 1  # always there, so that it is never absent
    counts[:300, 1] = 1
    files = [f"{number}.jpg" for number in range(600)]
    objects = ObjectCounts(
        files, range(600), ["always", "often", "never", "rare"], counts, np.zeros(counts.shape, bool)
    )
    questions = make_existence_questions(objects, 1200)
    absent = Counter(each.subject for each in questions if each.answers == ("No",))
    assert set(absent) == {"often", "never", "rare"}
    assert min(absent.values()) > 160
    present = Counter(each.subject for each in questions if each.answers == ("Yes",))
    assert present["always"] > 1.7 * present["often"]


def test_counts_equal_those_of_pycocotools(tmp_path):
    pytest.importorskip("inflect", reason="plurals are made by inflect")
    coco = pytest.importorskip("pycocotools.coco")
    file = write_coco(tmp_path) / "annotations" / "instances_val2017.json"
    known = coco.COCO(str(file))
    numbers = {each["name"]: each["id"] for each in known.loadCats(known.getCatIds())}
    for each in listed(opened(file, questions="count")):
        ids = known.getAnnIds(imgIds=[each.identifier], catIds=[numbers[each.subject]])
        assert each.answers == (str(len(ids)),)


def test_a_file_of_several_years_is_to_be_chosen(tmp_path):
    write_coco(tmp_path, ["train2014", "train2017"])
    with pytest.raises(DataError, match="has annotations of several years; give one file as source"):
        opened(tmp_path, questions="identify")
    source = opened(tmp_path / "annotations" / "instances_train2014.json", questions="identify")
    assert source.split == "all"
    assert "train2014" in source.name(0)


def test_images_of_vcr_are_asked_about_once(tmp_path):
    source = opened(write_vcr(tmp_path), questions="identify")
    there = {(each.identifier, each.subject) for each in listed(source) if each.answers == ("Yes",)}
    # four names in two images: as many true as false questions is what the three absent pairs admit
    assert there < {
        ("film/a@0.jpg", "person"),
        ("film/a@0.jpg", "dining table"),
        ("film/b@1.jpg", "person"),
        ("film/b@1.jpg", "dog"),
        ("film/b@1.jpg", "cup"),
    }
    assert len(source) == 6
    assert {each.objects for each in listed(source)} == {3}
    assert (source.split, opened(tmp_path, "validation", questions="identify").split) == ("train", "val")


def test_objects_can_be_asked_about_in_two_ways(tmp_path):
    with pytest.raises(DataError, match="may be read as count, identify; choose one of them as questions"):
        opened(write_coco(tmp_path))


def test_gvtbench_is_read_without_the_leak_of_its_wording(tmp_path):
    file = write_json(tmp_path / "vcr_mci.json", GVTBENCH_MCI)
    for name in ("a@0", "b@1"):
        write_image(tmp_path / "vcr1images" / "film" / f"{name}.jpg")
    source = opened(file)
    questions = listed(source)
    assert [each.text for each in questions] == [
        "Does ties exist in the image?",
        "Does stopsigns exist in the image?",
        "Does stopsigns exist in the image?",
    ]
    assert [each.answers for each in questions] == [("Yes",), ("No",), ("No",)]
    assert [each.group for each in questions] == ["10-19 objects", *["fewer than 10 objects"] * 2]
    assert (source.split, source.notes) == ("all", ("GVTBench's vcr_mci: 3 questions about 2 images",))


def test_gvtbench_is_written_as_it_is_read(tmp_path):
    file = write_json(tmp_path / "coco_oc.json", GVTBENCH_COUNT)
    for row in GVTBENCH_COUNT:
        write_image(tmp_path / "val2017" / f"{row['image_id']:012d}.jpg")
    source = opened(file)
    assert (source.question(1).subject, source.question(1).group) == ("sports balls", "3-5")
    written = write_gvtbench(tmp_path / "own.json", listed(source))
    assert json.loads(written.read_text()) == GVTBENCH_COUNT
    objects = listed(opened(write_coco(tmp_path / "coco"), questions="identify"))
    own = write_gvtbench(tmp_path / "own_mci.json", objects)
    again = listed(opened(own, images=str(tmp_path / "coco" / "train2017")))
    assert again == objects
    with pytest.raises(ValueError, match="counting and identification questions only"):
        write_gvtbench(tmp_path / "no.json", listed(opened(write_easy_vqa(tmp_path / "easy"))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_in": "Is there a cat?"}, r'question 2: expected "Does … exist in the image\?"'),
        ({"text_out": "many"}, "question 2: text_out should be a number, not 'many'"),
        ({"text_out": "1" * 5000}, "question 2: text_out should be a number, not '1111"),
        ({"n_obj_exist": 10**20}, "question 2: n_obj_exist should be a number, not 1000"),
        ({"n_obj_exist": "3"}, "question 2: n_obj_exist should be a number, not '3'"),
        ({"image_id": None}, "question 2: expected image_id, text_in, text_out and n_obj_exist"),
        ({"text_in": "Does cat exist in the image?"}, "question 2: text_out should be Yes. or No., not '4'"),
    ],
)
def test_a_question_that_is_not_gvtbenchs_is_named(tmp_path, change, message):
    rows = [GVTBENCH_COUNT[0], GVTBENCH_COUNT[1] | change]
    with pytest.raises(DataError, match=message):
        opened(write_json(tmp_path / "own.json", rows), questions="gvtbench")


def test_what_was_looked_for_is_said(tmp_path):
    with pytest.raises(DataError, match="there is no such folder or file of questions"):
        opened(tmp_path / "missing")
    with pytest.raises(DataError, match="holds no questions in a known layout; looked for v2_OpenEnded_mscoco"):
        opened(tmp_path)
    with pytest.raises(DataError, match="no annotated objects; looked for annotations/instances_"):
        opened(tmp_path, questions="count")
    with pytest.raises(DataError, match="not VQAv2; looked for"):
        opened(tmp_path, questions="vqa")
    with pytest.raises(DataError, match=r"not easy-vqa; looked for train/questions.json"):
        opened(tmp_path, questions="easy_vqa")


def test_no_image_is_flipped_whose_question_says_left_or_right(tmp_path):
    source = opened(write_vqa(tmp_path))
    assert [source.may_flip(index) for index in range(4)] == [True, False, True, False]
    assert names_a_side("Which?", "the Right one")
    assert not names_a_side("bright cleft")
    always = TrainTransform((4, 4), crop_scale=(1, 1))
    for index, expected in ((1, {True}), (0, {True, False})):
        image = source.load(index).resize((4, 4))
        image.paste((0, 0, 0), (0, 0, 2, 4))
        samples = [always(image, np.random.default_rng(seed)) for seed in range(12)]
        assert {bool(sample[0, 0].sum() < sample[0, 3].sum()) for sample in samples} == expected


def test_an_answer_is_drawn_as_often_as_people_gave_it():
    answers = ("no", *["a\ncat"] * 9)
    drawn = Counter(draw_answer(answers, 0, 0, index) for index in range(500))
    assert set(drawn) == {"no", "a cat"}
    assert 20 < drawn["no"] < 85
    assert draw_answer(answers, 0, 3, 7) == draw_answer(answers, 0, 3, 7)
    assert draw_answer(("red",), 1, 2, 3) == "red"
    with pytest.raises(ValueError, match="without answers"):
        draw_answer((), 0, 0, 0)


def test_questions_are_known_again_wherever_they_lie(tmp_path):
    source = opened(write_easy_vqa(tmp_path / "a"))
    identity = identify_source(source)
    assert identify_source(opened(write_easy_vqa(tmp_path / "b"))) == identity
    rows = json.loads((tmp_path / "b" / "train" / "questions.json").read_text())
    rows[4][1] = "yes"
    write_json(tmp_path / "b" / "train" / "questions.json", rows)
    changed = identify_source(opened(tmp_path / "b"))
    assert (changed.files, changed.sample) == (identity.files, identity.sample)
    assert changed.labels != identity.labels
    keys = hash_images(source, np.array([3, 0, 1, 2]), "content")
    assert len(set(keys.tolist())) == 2
    assert keys[1] == keys[2] == keys[3]


def test_sets_are_mixed_by_their_weights(tmp_path):
    easy = write_easy_vqa(tmp_path / "easy")
    vqa = write_vqa(tmp_path / "vqa")
    sets = ({"source": str(vqa), "weight": 2.5},)
    data = VisionLanguageData(source=str(easy), sets=sets)
    source, indices = open_data_questions(data, "train")
    assert (len(source), source.split, len(source.notes)) == (13, "train", 2)
    counted = Counter(indices.tolist())
    assert [counted[index] for index in range(9)] == [1] * 9
    assert sorted(counted[index] for index in range(9, 13)) == [2, 2, 3, 3]
    assert (indices == open_data_questions(data, "train")[1]).all()
    assert source.question(10) == opened(vqa).question(1)
    assert (source.name(8), source.may_flip(10)) == (opened(easy).name(8), False)
    assert source.load(9).size == (16, 12)
    assert identify_source(source).images == 13
    measured, all_of_it = open_data_questions(data, "validation")
    assert (len(measured), all_of_it) == (9, None)
    assert weigh_questions([3], [1.0]).tolist() == [0, 1, 2]
    assert len(weigh_questions([100], [0.1])) == 10
