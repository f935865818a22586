"""Images that a table names, with one class each or several, in parts and groups."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ehm.data.sources.base import FileSource, Names, Split
from ehm.data.sources.inventory import describe_layout
from ehm.data.sources.parts import PARTS, name_part
from ehm.data.sources.table.labels import TableLabels, is_empty, number_groups, read_labels
from ehm.data.sources.table.reading import TABLE_SUFFIXES, Table, list_columns, read_table
from ehm.errors import DataError
from ehm.storage.names import escape_undecodable
from ehm.storage.reading import describe_value

if TYPE_CHECKING:
    from ehm.config import TableColumns

__all__ = ["TableSource", "open_table"]

_LABEL = "label"
_SPLIT = "split"
"""The columns that are read without being named, if they are there."""


@dataclass(frozen=True)
class TableSource(FileSource):
    """Images that a table names.

    ``targets`` (n, C) say of each image which labels it has; ``labels`` is None then, as no image has one class.
    ``groups`` (n,) are the numbers of groups that are not split between training and validation.
    """

    targets: NDArray[np.bool_] | None = None
    groups: NDArray[np.int64] | None = None

    def select(self, indices: NDArray[np.int64], labels: NDArray[np.int64], classes: tuple[str, ...]) -> TableSource:
        """Return the images at ``indices`` (n,) alone, with ``labels`` (n,) that number ``classes``."""
        selected = super().select(indices, labels, classes)
        assert isinstance(selected, TableSource)
        return replace(selected, groups=None if self.groups is None else self.groups[indices])


def open_table(source: str, split: Split, columns: TableColumns, images: str | None) -> TableSource:
    """Open the images that the table ``source`` names in its ``columns``; paths start from the folder ``images``.

    Without ``images`` they start from the folder of the table. Raises DataError that names the column, or the line of
    the table, if it cannot be read so, if an image is named twice, if the first image is missing, or if a group is in
    the training part and in another.
    """
    file = Path(source).expanduser()
    if file.suffix.lower() not in TABLE_SUFFIXES or not file.is_file():
        raise DataError(
            f"data.source {source}: no table of images is there; expected a file {', '.join(sorted(TABLE_SUFFIXES))}"
        )
    columns = _complete_columns(file, columns)
    table = read_table(file, _list_wanted(columns))
    if not len(table):
        raise DataError(f"data.source {source}: names no images")
    root = file.parent if images is None else Path(images).expanduser()
    files = _read_paths(table, columns)
    part_of = _read_parts(table, columns.split)
    groups = None if columns.group is None else number_groups(table, columns.group)
    if groups is not None and columns.group is not None:
        _refuse_split_groups(table, columns.group, groups, part_of)

    read = np.isin(part_of, ("train", "val"))
    labels = TableLabels()
    if columns.label is not None:
        # rows of the test part may have no labels
        labels = read_labels(_take_rows(table, read), columns.label, columns.separator, part_of[read] == "train")
    has_val = bool((part_of == "val").any())
    if split == "val" and not has_val:
        raise DataError(
            f"data.source {source}: has no validation part of its own (rows whose {columns.split or _SPLIT} is val)"
        )
    if not has_val:
        split = "all"
    rows = np.flatnonzero(read if split == "all" else part_of == split)
    if not len(rows):
        raise DataError(f"data.source {source}: no row of it is of the training part")
    places = np.cumsum(read)[rows] - 1  # of these rows among those whose labels were read
    first = root / files[rows[0]]
    if not first.is_file():
        raise DataError(
            f"{table.name_row(int(rows[0]))}: its image is not there: {first}; data.images names the folder that paths "
            "start from"
        )
    return TableSource(
        root,
        Names(files[row] for row in rows.tolist()),
        None if labels.numbers is None else labels.numbers[places],
        tuple(map(escape_undecodable, labels.classes)),
        split,
        notes=tuple(_describe_table(file, columns, labels, part_of, groups)),
        targets=None if labels.targets is None else labels.targets[places],
        groups=None if groups is None else groups[rows],
    )


def _complete_columns(file: Path, columns: TableColumns) -> TableColumns:
    """Return ``columns`` with those that are read if they are there, though nobody named them."""
    present = list_columns(file, columns.path)
    found = {}
    if columns.label is None and _LABEL in present:
        found["label"] = _LABEL
    if columns.split is None and _SPLIT in present:
        found["split"] = _SPLIT
    return columns.model_copy(update=found)


def _list_wanted(columns: TableColumns) -> list[str]:
    """Return the names of all columns to read, that of the path first, each once."""
    wanted = [columns.path]
    if isinstance(columns.label, str):
        wanted.append(columns.label)
    elif columns.label is not None:
        wanted += columns.label
    wanted += filter(None, (columns.split, columns.group))
    return list(dict.fromkeys(wanted))


def _read_paths(table: Table, columns: TableColumns) -> list[str]:
    files = []
    line_of: dict[str, int] = {}
    for row, cell in enumerate(table.columns[columns.path]):
        if is_empty(cell) or not isinstance(cell, (str, int)):
            raise DataError(f"{table.name_row(row)}: {columns.path} is {describe_value(cell)}, and not a path")
        file = os.path.normpath(f"{cell}{columns.suffix}")
        if file in line_of:
            raise DataError(
                f"{table.name_row(row)}: {file} stands in {table.unit} {line_of[file]} already; each image has one "
                "row, and several labels stand in one cell (data.columns.separator) or in a column each"
            )
        line_of[file] = table.lines[row]
        files.append(file)
    return files


def _read_parts(table: Table, column: str | None) -> NDArray[np.str_]:
    """Return the part of each row (n,); all are of the training part if there is no ``column``."""
    if column is None:
        return np.full(len(table), "train")
    parts = []
    for row, cell in enumerate(table.columns[column]):
        part = name_part(str(cell).strip())
        if part is None:
            raise DataError(
                f"{table.name_row(row)}: {column} is {describe_value(cell)}, not train, val or test; "
                "data.columns.split names another column"
            )
        parts.append(part)
    return np.array(parts)


def _refuse_split_groups(table: Table, column: str, groups: NDArray[np.int64], part_of: NDArray[np.str_]) -> None:
    """Raise DataError if images of one group are in the training part and in another."""
    trained = set(groups[part_of == "train"].tolist())
    for row in np.flatnonzero(part_of != "train").tolist():
        if int(groups[row]) in trained:
            name = table.columns[column][row]
            raise DataError(
                f"{table.name_row(row)}: {column} {name} is in {part_of[row]} and in train; a group has to lie in one "
                "part, or what is measured has been seen"
            )


def _take_rows(table: Table, kept: NDArray[np.bool_]) -> Table:
    if kept.all():
        return table
    rows = np.flatnonzero(kept).tolist()
    columns = {name: [cells[row] for row in rows] for name, cells in table.columns.items()}
    return replace(table, columns=columns, lines=[table.lines[row] for row in rows])


def _describe_table(
    file: Path,
    columns: TableColumns,
    labels: TableLabels,
    part_of: NDArray[np.str_],
    groups: NDArray[np.int64] | None,
) -> list[str]:
    """Return lines that say what was found in the table."""
    parts, counts = np.unique(part_of, return_counts=True)
    count_of = dict(zip(parts.tolist(), counts.tolist(), strict=True))
    names = [part for part in PARTS if part in count_of]
    notes = [describe_layout(f"table {file.name}", names if len(names) > 1 else (), len(labels.classes))]
    if labels.unlabelled:
        notes.append(f"its labels are not used: {labels.unlabelled}")
    if labels.targets is not None:
        without = int((~labels.targets.any(axis=1)).sum())
        notes.append(
            f"several labels an image: {labels.targets.sum(axis=1).mean():.2f} on average, none in {without:,} of "
            f"{len(labels.targets):,} images"
        )
    if groups is not None:
        notes.append(f"groups by {columns.group}: {len(np.unique(groups)):,}, none of which is split")
    if len(names) > 1:
        notes.append(f"images: {', '.join(f'{count_of[name]:,} in {name}' for name in names)}")
    if "test" in count_of:
        notes.append("images of test are not read; to measure on them, write them into a table of their own")
    return notes
