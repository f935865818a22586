"""Answers of revisited Oxford and Paris, and what else one may search: read safely, and wrong ones by their names."""

import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from ehm.config import DataConfig
from ehm.data import open_source
from ehm.errors import BrokenImage, DataError
from ehm.tasks.retrieval.answers import make_answers_by_class, read_answers
from ehm.tasks.retrieval.benchmarks import open_benchmark


def picture(path, size=(40, 30), colour=(9, 9, 9)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def content(kind=list):
    """Two queries, four images."""
    return {
        "imlist": ["a", "b", "c", "d"],
        "qimlist": ["x", "y"],
        "gnd": [
            {"bbx": [2.0, 3.0, 22.6, 13.0], "easy": kind([0]), "hard": kind([2, 1]), "junk": kind([])},
            {"bbx": kind([0.0, 0.0, 40.0, 30.0]), "easy": kind([]), "hard": kind([3]), "junk": kind([0])},
        ],
    }


@pytest.fixture
def oxford(tmp_path):
    """The published layout: images beside their answers, in a pickle."""
    root = tmp_path / "roxford5k"
    for number, name in enumerate("abcdxy"):
        picture(root / "jpg" / f"{name}.jpg", colour=(40 * number, 0, 0))
    (root / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content(np.array), protocol=2))
    return root


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    "kind",
    [
        list,
        np.array,
        lambda values: np.array(values, ">i8"),
        lambda values: np.array(values, "<u2").reshape(-1, 1),
        lambda values: [np.int64(value) for value in values],
    ],
)
def test_a_pickle_of_numbers_is_read_whatever_wrote_it(protocol, kind, tmp_path):
    file = tmp_path / "gnd.pkl"
    file.write_bytes(pickle.dumps(content(kind), protocol=protocol))
    found = read_answers(file)
    assert found["imlist"] == ["a", "b", "c", "d"]
    assert [list(entry["hard"]) for entry in found["gnd"]] == [[2, 1], [3]]


class Harm:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def test_nothing_in_a_pickle_is_executed(tmp_path):
    trace = tmp_path / "trace"
    file = tmp_path / "gnd.pkl"
    for harm in (
        Harm(os.system, (f"touch {trace}",)),
        Harm(eval, (f"open({str(trace)!r}, 'w')",)),
        Harm(np.save, (str(trace), 1)),
        Harm(np.array, ([1],)),
        np.array([Harm(os.system, (f"touch {trace}",))], dtype=object),
        np.array([{}], dtype=object),
    ):
        for protocol in (0, 2, 5):
            file.write_bytes(pickle.dumps(content() | {"more": harm}, protocol=protocol))
            with pytest.raises(DataError, match=r"gnd\.pkl: cannot be read as answers: it (names|holds)"):
                read_answers(file)
    assert list(tmp_path.iterdir()) == [file]


def test_no_bytes_of_a_pickle_become_an_address(tmp_path):
    """NumPy takes them for one where an array of objects is made from a buffer."""
    file = tmp_path / "gnd.pkl"
    file.write_bytes(pickle.dumps(content() | {"more": Harm(np.ndarray, ((1,), "O", b"\0" * 8))}, protocol=2))
    with pytest.raises(DataError, match=r"gnd\.pkl: cannot be read as answers"):
        read_answers(file)


def test_the_published_layout(oxford):
    found = open_benchmark(str(oxford))
    assert found.revisited
    assert (found.queries.tolist(), found.database.tolist()) == ([0, 1], [2, 3, 4, 5])
    assert [found.source.name(number)[-5:] for number in range(6)] == [f"{name}.jpg" for name in "xyabcd"]
    assert [a.hard.tolist() for a in found.answers] == [[2, 1], [3]]
    assert [a.junk.tolist() for a in found.answers] == [[], [0]]
    assert found.source.load(0).size == (21, 10)  # a query is cut to its box
    assert found.source.load(2).size == (40, 30)
    written = content() | {"gnd": [{**entry, "bbx": list(entry["bbx"])} for entry in content()["gnd"]]}
    (oxford / "gnd.json").write_text(json.dumps(written))
    with pytest.raises(DataError, match=r"holds gnd\.json and gnd_roxford5k\.pkl; name one of them"):
        open_benchmark(str(oxford))
    for ours, theirs in zip(open_benchmark(str(oxford / "gnd.json")).answers, found.answers, strict=True):
        assert ours.easy.tolist() == theirs.easy.tolist()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"imlist": ["a", "b", "c", "gone"]}, r"image gone is not in .*jpg"),
        ({"qimlist": ["x"]}, "1 queries in qimlist, 2 in gnd"),
        ({"qimlist": []}, "0 queries in qimlist"),
        ({"gnd": [{"easy": [4]}, {}]}, r"query x: easy: expected numbers of images from 0 to 3, not \[4\]"),
        ({"gnd": [{}, {"junk": [-1]}]}, "query y: junk: expected numbers"),
        ({"gnd": [{"hard": ["a"]}, {}]}, "query x: hard: expected numbers"),
        ({"gnd": [{"hard": [0.5]}, {}]}, "query x: hard: expected numbers"),
        ({"gnd": [{"bbx": [1, 2, 3]}, {}]}, "query x: bbx: expected left, top, right, bottom"),
        ({"gnd": [{"bbx": [1, 2, float("inf"), 3]}, {}]}, "query x: bbx: is not finite"),
        ({"gnd": [{"bbx": [50, 2, 60, 9]}, {}]}, r"x\.jpg: its box \[50.0, 2.0, 60.0, 9.0\] holds nothing of 40 x 30"),
        ({"gnd": [[], {}]}, "query x: expected a dictionary"),
        ({"gnd": {}}, "expected a dictionary of the lists imlist, qimlist, gnd"),
    ],
)
def test_wrong_answers_are_named_before_anything_is_computed(change, sentence, oxford):
    (oxford / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content() | change))
    with pytest.raises(DataError, match=sentence) as raised:
        open_benchmark(str(oxford))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_pickle(oxford):
    (oxford / "gnd_roxford5k.pkl").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"gnd_roxford5k\.pkl: cannot be read as answers"):
        open_benchmark(str(oxford))


def test_folders_of_ones_own(tmp_path):
    for name in ("queries/bee/1.png", "queries/ant/2.png", "database/ant/3.png", "database/bee/4.png"):
        picture(tmp_path / name)
    for name in ("database/cat/5.png", "database/bee/6.png"):
        picture(tmp_path / name)
    found = open_benchmark(str(tmp_path))
    assert not found.revisited
    names = [os.path.basename(found.source.name(number)) for number in found.database]
    sought = [os.path.basename(found.source.name(number)) for number in found.queries]
    pairs = {query: {names[at] for at in a.easy} for query, a in zip(sought, found.answers, strict=True)}
    assert pairs == {"1.png": {"4.png", "6.png"}, "2.png": {"3.png"}}

    picture(tmp_path / "queries" / "dog" / "7.png")
    with pytest.raises(DataError, match="queries/dog has no folder of that name in database/"):
        open_benchmark(str(tmp_path))
    answers = {"imlist": ["ant/3.png"], "qimlist": ["dog/7.png"], "gnd": [{"easy": [0]}]}
    (tmp_path / "gnd.json").write_text(json.dumps(answers))
    assert len(open_benchmark(str(tmp_path)).database) == 1
    with pytest.raises(DataError, match="there is no such folder or file"):
        open_benchmark(str(tmp_path / "nowhere"))


def test_classes_are_sought_among_themselves(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/3.png", "b/4.png", "b/5.png"):
        picture(tmp_path / name)
    found = open_benchmark(str(tmp_path))
    assert [(a.easy.tolist(), a.junk.tolist()) for a in found.answers][:3] == [([1], [0]), ([0], [1]), ([3, 4], [2])]
    queries, database, answers = make_answers_by_class(np.array([0, 1, 0, 1]), np.array([0, 2, 3]))
    assert queries.tolist() == database.tolist() == [0, 2, 3]
    assert [a.easy.tolist() for a in answers] == [[1], [0], []]
    picture(tmp_path / "0.png")
    with pytest.raises(DataError, match="or a folder for each class"):
        open_benchmark(str(tmp_path))


def test_a_box_is_cut_to_the_image(oxford):
    values = content()
    values["gnd"][0]["bbx"] = [-5, 20, 99, 99]
    (oxford / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(values))
    found = open_benchmark(str(oxford))
    assert found.source.load(0).size == (40, 10)
    picture(oxford / "jpg" / "x.jpg", size=(40, 15))  # since then another file
    with pytest.raises(BrokenImage, match="holds nothing of 40 x 15 pixels"):
        found.source.load(0)


@pytest.fixture
def landmarks(tmp_path):
    root = tmp_path / "gldv2"
    for number, name in enumerate(("0a1f00", "0a1f01", "b2c3ff", "fedc00")):
        picture(root / "train" / name[0] / name[1] / name[2] / f"{name}.jpg", colour=(60 * number, 0, 0))
    rows = ["id,url,landmark_id", "0a1f00,http://x/,70", "fedc00,http://y/,5", "b2c3ff,,70", "0a1f01,,203092"]
    (root / "train.csv").write_text("\n".join(rows) + "\n")
    return root


def test_google_landmarks_in_both_tables(landmarks):
    source = open_source(DataConfig(source=str(landmarks)), "train")
    assert (source.classes, source.split) == (("5", "70", "203092"), "all")
    assert source.labels.tolist() == [1, 0, 1, 2]
    assert source.name(1) == str(landmarks / "train/f/e/d/fedc00.jpg")
    assert source.load(1).getpixel((0, 0))[0] == pytest.approx(180, abs=3)
    (landmarks / "train_clean.csv").write_text("landmark_id,images\n70,0a1f00 b2c3ff\n5,fedc00\n")
    clean = open_source(DataConfig(source=str(landmarks), layout="gldv2"), "train")
    assert (clean.classes, clean.labels.tolist()) == (("5", "70"), [1, 1, 0])


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("landmark_id,images\n70,0a1f00\nfive,fedc00\n", r"train_clean\.csv: line 3: expected a landmark's number"),
        ("landmark_id,images\n70,\n", r"line 2: expected"),
        ("landmark,images\n70,0a1f00\n", r"expected the columns landmark_id,images, not landmark,images"),
        ("landmark_id,images\n", "has no images"),
        ("landmark_id,images\n70,abcd\n", r"its first image is not there: .*train/a/b/c/abcd\.jpg"),
    ],
)
def test_a_wrong_table_is_named_by_its_line(table, sentence, landmarks):
    (landmarks / "train_clean.csv").write_text(table)
    with pytest.raises(DataError, match=sentence):
        open_source(DataConfig(source=str(landmarks)), "train")


def test_google_landmarks_needs_a_benchmark(landmarks):
    with pytest.raises(DataError, match="set benchmark"):
        open_source(DataConfig(source=str(landmarks)), "val")
