"""The images that encoders are compared on: tables, and groups that no division splits."""

import csv

import numpy as np
import pytest
from PIL import Image

from ehm.comparison.images import open_images
from ehm.config import MeasureConfig
from ehm.errors import ConfigError


@pytest.fixture
def table(tmp_path):
    with (tmp_path / "t.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "kind", "site"])
        for number in range(24):
            Image.new("L", (4, 4), number).save(tmp_path / f"{number}.png")
            rows.writerow([f"{number}.png", "cat" if number % 3 else "dog", f"s{number // 3}"])
    return tmp_path / "t.csv"


def make_measure(table, **values):
    columns = {"path": "file", "label": "kind", "group": "site"}
    return MeasureConfig(source=str(table), columns=columns, repeats=3, **values)


def test_no_division_splits_a_group(table):
    images = open_images(make_measure(table, folds=4))
    sites = np.arange(24) // 3
    assert len(images.splits) == 12
    for split in images.splits:
        assert not set(sites[split.train]) & set(sites[split.test])
        assert np.bincount(images.labels[split.test]).tolist() == [4, 2]
    # every image is measured once in each division, and the divisions differ
    tested = [frozenset(split.test.tolist()) for split in images.splits]
    assert sorted(number for test in tested[:4] for number in test) == list(range(24))
    assert len(set(tested)) > 4


def test_too_few_groups_are_refused(table):
    with table.open() as file:
        text = file.read()
    table.write_text(text.replace(",s1\n", ",s0\n").replace(",s2\n", ",s0\n"))
    with pytest.raises(ConfigError, match="folds: folds must be from 2 to the 6 groups, not 7"):
        open_images(make_measure(table, folds=7))
    swapped = text.replace("dog", "cat")
    for number in range(6):
        swapped = swapped.replace(f"\n{number}.png,cat", f"\n{number}.png,dog")
    table.write_text(swapped)
    with pytest.raises(ConfigError, match="class dog are in too few groups for each fold to have some"):
        open_images(make_measure(table, folds=5))
