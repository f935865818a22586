"""Tables of images: CSV, JSON lines and Parquet, compared with what pandas reads."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold

from ehm.config import DataConfig, FinetuneConfig
from ehm.data import open_source
from ehm.data.folds import group_folds
from ehm.data.sources.identity import identify_source
from ehm.errors import ConfigError, DataError
from ehm.tasks.classification.task import Classification
from ehm.tasks.folds import stratify_source

ROWS = 12


@pytest.fixture
def frame(tmp_path):
    """A table of images, with names that a CSV file has to quote, and the images themselves in photos/."""
    (tmp_path / "photos").mkdir()
    names = [f'photo, "{number}".png' for number in range(ROWS)]
    for number, name in enumerate(names):
        Image.new("L", (4, 4), 10 * number).save(tmp_path / "photos" / name)
    return pd.DataFrame(
        {
            "file": [f"photos/{name}" for name in names],
            "kind": ["dog", "cat", "emu"] * 4,
            "findings": ["b;a", "", "c", "a"] * 3,
            "a": [1, 0, 0, 1] * 3,
            "b": [1, 0, 0, 0] * 3,
            "patient": [f"p{number // 3}" for number in range(ROWS)],
            "part": ["train"] * 6 + ["Validation"] * 3 + ["test"] * 3,
        }
    )


def write(frame, path):
    """Write the table as the suffix of ``path`` says."""
    if path.suffix == ".csv":
        # as Excel does in many countries
        frame.to_csv(path, index=False, sep=";" if "semicolon" in path.stem else ",", encoding="utf-8-sig")
    elif path.suffix == ".tsv":
        frame.to_csv(path, index=False, sep="\t")
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    return path


def open_columns(table, wanted="all", **columns):
    return open_source(DataConfig(source=str(table), columns={"path": "file", **columns}), wanted)


@pytest.mark.parametrize("name", ["t.csv", "semicolon.csv", "t.tsv", "t.jsonl", "t.parquet"])
def test_classes_and_several_labels_are_those_of_pandas(frame, tmp_path, name):
    path = write(frame, tmp_path / name)
    source = open_columns(path, label="kind")
    expected = frame.kind.astype("category").cat
    assert source.classes == tuple(expected.categories)
    assert source.labels.tolist() == expected.codes.tolist()
    assert source.load(3).getpixel((0, 0)) == (30, 30, 30)
    assert source.notes[0] == f"table {name}; 3 classes"

    dummies = frame.findings.str.get_dummies(";").drop(columns="", errors="ignore")
    several = open_columns(path, label="findings", separator=";")
    assert several.labels is None
    assert several.classes == tuple(dummies.columns)
    assert np.array_equal(several.targets, dummies.to_numpy(bool))
    flags = open_columns(path, label=["b", "a"])
    assert flags.classes == ("b", "a")
    assert np.array_equal(flags.targets, frame[["b", "a"]].to_numpy(bool))
    assert flags.notes[1] == "several labels an image: 0.75 on average, none in 6 of 12 images"


def test_lists_in_cells_are_several_labels(frame, tmp_path):
    frame["labels"] = [list(filter(None, names.split(";"))) for names in frame.findings]
    expected = frame.findings.str.get_dummies(";").drop(columns="", errors="ignore").to_numpy(bool)
    for name in ("t.jsonl", "t.parquet"):
        source = open_columns(write(frame, tmp_path / name), label="labels")
        assert np.array_equal(source.targets, expected)


def test_numbers_are_classes_in_their_order(frame, tmp_path):
    frame["label"] = [10, 9, 2.0, -1] * 3  # floats, as pandas writes whole numbers where some are missing
    for name in ("t.parquet", "t.jsonl"):
        source = open_columns(write(frame, tmp_path / name))  # the column label needs no naming
        assert source.classes == ("-1", "2", "9", "10")
        assert source.labels[:4].tolist() == [3, 2, 1, 0]
    # a text stays as it is written
    frame["label"] = ["10", "9", "02", "-1"] * 3
    assert open_columns(write(frame, tmp_path / "t.csv")).classes == ("-1", "02", "9", "10")


def test_parts_are_those_of_a_column_and_the_test_part_is_not_read(frame, tmp_path):
    frame.loc[9:, "kind"] = None  # nobody labels what is kept for a contest
    path = write(frame, tmp_path / "t.csv")
    train = open_columns(path, "train", label="kind", split="part")
    val = open_columns(path, "val", label="kind", split="part")
    both = open_columns(path, "all", label="kind", split="part")
    assert [len(train), len(val), len(both)] == [6, 3, 9]
    assert [train.split, val.split, both.split] == ["train", "val", "all"]
    assert val.name(0).endswith('photo, "6".png')
    assert val.labels.tolist() == [1, 0, 2]
    assert "images: 6 in train, 3 in val, 3 in test" in train.notes
    # the column is found by its name, too
    renamed = write(frame.rename(columns={"part": "split"}), tmp_path / "renamed.csv")
    assert len(open_columns(renamed, "train", label="kind")) == 6
    with pytest.raises(DataError, match="no validation part of its own"):
        open_columns(path, "val", label="kind")


def test_paths_start_where_the_configuration_says(frame, tmp_path):
    frame["file"] = frame.file.str.removeprefix("photos/").str.removesuffix(".png")
    path = write(frame, tmp_path / "t.csv")
    columns = {"path": "file", "suffix": ".png", "label": "kind"}
    source = open_source(DataConfig(source=str(path), images=str(tmp_path / "photos"), columns=columns))
    assert source.load(1).getpixel((0, 0)) == (10, 10, 10)
    with pytest.raises(DataError, match=r"line 2: its image is not there: .*data\.images names the folder"):
        open_source(DataConfig(source=str(path), columns=columns))
    frame["file"] = str(tmp_path / "photos") + "/" + frame.file
    absolute = open_source(DataConfig(source=str(write(frame, path)), columns=columns))
    assert absolute.name(1) == source.name(1)


def test_rows_without_a_class_train_no_classifier_and_pretrain_all_the_same(frame, tmp_path):
    frame.loc[4, "kind"] = None
    path = write(frame, tmp_path / "t.parquet")
    source = open_columns(path, label="kind")
    assert len(source) == ROWS
    assert source.labels is None
    assert source.notes[1] == f"its labels are not used: {path}: row 5 has no kind"
    config = FinetuneConfig(data={"source": str(path), "columns": {"path": "file", "label": "kind"}})
    with pytest.raises(DataError, match=r"has no labels: data\.columns\.label names the column"):
        Classification.divide_source(config, source)


@pytest.mark.parametrize(
    ("change", "columns", "message"),
    [
        ({}, {"label": "type"}, "has no column type, but file, kind, findings"),
        ({"file": "photos/x.png"}, {}, "line 3: photos/x.png stands in line 2 already; each image has one row"),
        ({"a": 2}, {"label": ["a", "b"]}, "line 2: a is '2', not 0 or 1"),
        ({"part": "fold 1"}, {"split": "part"}, "line 2: part is 'fold 1', not train, val or test"),
        ({"patient": None}, {"group": "patient"}, "line 2: no patient; every image needs a group"),
        ({"patient": "p0"}, {"group": "patient", "split": "part"}, "patient p0 is in val and in train"),
    ],
)
def test_what_is_wrong_is_said_with_the_line(frame, tmp_path, change, columns, message):
    path = write(frame.assign(**change), tmp_path / "t.csv")
    with pytest.raises(DataError) as raised:
        open_columns(path, **columns)
    assert message in str(raised.value)


def test_files_that_are_no_tables_are_refused(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"file": "x.png"}\n[1]\n')
    (tmp_path / "t.parquet").write_text("no Parquet")
    (tmp_path / "t.csv").write_bytes(b"file\n\xff\n")
    (tmp_path / "empty.csv").touch()
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "long.csv").write_text("x" * 200_000)  # one cell, as in a file that is no table
    for name, message in (
        ("t.jsonl", "line 2: not an object in braces"),
        ("t.parquet", "not a Parquet file"),
        ("t.csv", "not a table in UTF-8"),
        ("long.csv", "not a table: field larger than field limit"),
        ("empty.csv", "has no columns: it is empty"),
        ("empty.jsonl", "has no columns: it is empty"),
    ):
        with pytest.raises(DataError, match=message):
            open_columns(tmp_path / name)
    with pytest.raises(DataError, match="no table of images is there"):
        open_source(DataConfig(source=str(tmp_path), layout="table"))


def test_a_parquet_file_with_a_damaged_page_is_refused(tmp_path):
    path = tmp_path / "t.parquet"
    pd.DataFrame({"file": [f"{number}.png" for number in range(1000)]}).to_parquet(path)
    content = bytearray(path.read_bytes())
    content[4:200] = b"\xff" * 196  # the footer, which has the columns, stays whole
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"t\.parquet: a damaged Parquet file: .*; write or copy it again"):
        open_columns(path)


def test_a_folder_says_that_it_has_no_columns(frame, tmp_path):
    config = DataConfig(source=str(tmp_path / "photos"), columns={"label": "kind"})
    assert "not used: data.columns" in open_source(config).notes[-1]


def test_the_identity_is_the_same_for_relative_and_absolute_paths(frame, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = identify_source(open_columns(write(frame, tmp_path / "t.csv"), path="file"))
    frame.loc[0, "file"] = str(tmp_path / frame.loc[0, "file"])
    write(frame, tmp_path / "t.csv")
    assert identify_source(open_columns("t.csv", path="file")) == expected


def test_the_identity_knows_labels_and_groups(frame, tmp_path):
    path = write(frame, tmp_path / "t.csv")

    def identify(frame=None, **columns):
        if frame is not None:
            write(frame, path)
        return identify_source(open_columns(path, **columns))

    several = {"label": "findings", "separator": ";", "group": "patient"}
    first = identify(**several)
    assert identify(frame.assign(patient="x" + frame.patient), **several) == first  # the same division
    other_groups = identify(frame.assign(patient=list("aabbccddeeff")), **several)
    assert other_groups.groups != first.groups
    assert other_groups.labels == first.labels
    assert identify(frame.assign(findings=frame.findings.replace("c", "b")), **several).labels != first.labels
    assert identify(frame, label="kind").groups == ""


def test_some_of_several_labels_are_kept_with_all_images(frame, tmp_path):
    path = write(frame, tmp_path / "t.csv")
    columns = {"path": "file", "label": "findings", "separator": ";"}
    source = open_source(DataConfig(source=str(path), columns=columns, classes=["c", "a"]))
    assert source.classes == ("a", "c")
    expected = frame.findings.str.get_dummies(";")[["a", "c"]].to_numpy(bool)
    assert np.array_equal(source.targets, expected)
    assert source.notes[-1] == "data.classes: 2 of the 3 labels"


def test_groups_stay_together_as_in_scikit_learn():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 40, 300)
    labels = rng.choice(3, 300, p=[0.7, 0.2, 0.1])
    found = group_folds(labels[:, None] == np.arange(3), groups, 5)
    expected = np.empty(300, int)
    splits = StratifiedGroupKFold(5).split(np.zeros(300), labels, groups)
    for fold, (_, held_out) in enumerate(splits):
        expected[held_out] = fold
    assert np.array_equal(found, expected)
    with pytest.raises(ValueError, match="from 2 to the 40 groups, not 41"):
        group_folds(labels[:, None] == np.arange(3), groups, 41)


def test_several_labels_are_spread_over_the_folds(frame, tmp_path):
    columns = {"path": "file", "label": "findings", "separator": ";"}
    path = write(frame, tmp_path / "t.csv")
    config = FinetuneConfig(data={"source": str(path), "columns": columns}, folds=3)
    source = open_source(config.data)
    fold_of = stratify_source(source, None, config)
    for fold in range(3):
        assert source.targets[fold_of == fold].sum(axis=0).tolist() == [2, 1, 1]
    with_groups = FinetuneConfig(data={"source": str(path), "columns": {**columns, "group": "patient"}}, folds=4)
    source = open_source(with_groups.data)
    fold_of = stratify_source(source, None, with_groups)
    assert len({(group, fold) for group, fold in zip(frame.patient, fold_of, strict=True)}) == 4
    with pytest.raises(ConfigError, match="folds: folds must be from 2 to the 4 groups, not 5"):
        stratify_source(source, None, with_groups.model_copy(update={"folds": 5}))
