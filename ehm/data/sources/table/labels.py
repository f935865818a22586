"""Turn the cells of a table into labels: one class a row, or several.

n rows, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.data.sources.inventory import list_names
from ehm.data.sources.table.reading import Table
from ehm.errors import DataError
from ehm.storage.reading import describe_value

__all__ = ["TableLabels", "is_empty", "number_groups", "read_labels"]

_FLAGS = {"0": False, "1": True, "false": False, "true": True}
"""The cells of a column that says whether an image has a label, in lower case."""


@dataclass(frozen=True)
class TableLabels:
    """The labels of n rows: ``numbers`` (n,) of one class each, or ``targets`` (n, C), True where a row has a label.

    Neither is there if a row has no class; ``unlabelled`` says which.
    """

    classes: tuple[str, ...] = ()
    numbers: NDArray[np.int64] | None = None
    targets: NDArray[np.bool_] | None = None
    unlabelled: str = ""


def read_labels(
    table: Table, column: str | Sequence[str], separator: str | None, trained: NDArray[np.bool_]
) -> TableLabels:
    """Read the labels in ``column``, or in a column for each label.

    Cells that are lists, or texts with a ``separator``, are several labels each, or none. The classes are those of the
    ``trained`` rows (n,), in the order of numbers if all are whole numbers, else in that of texts. Raises DataError
    that names the row if another row has a class that these lack, or if a cell is no label.
    """
    if not isinstance(column, str):
        return _read_flags(table, column)
    cells = table.columns[column]
    if separator is None and not any(isinstance(cell, (list, tuple)) for cell in cells):
        return _read_single(table, column, trained)
    names_of = []
    for row, cell in enumerate(cells):
        names_of.append(_split_cell(table, row, column, cell, separator))
    trained_names: set[str] = set()
    for row in np.flatnonzero(trained).tolist():
        trained_names.update(names_of[row])
    classes = _sort_classes(trained_names)
    number_of = {name: number for number, name in enumerate(classes)}
    targets = np.zeros((len(table), len(classes)), bool)
    for row, names in enumerate(names_of):
        for name in names:
            targets[row, _find_number(table, row, name, number_of)] = True
    return TableLabels(classes, targets=targets)


def number_groups(table: Table, column: str) -> NDArray[np.int64]:
    """Return the number of the group of each row, (n,), counted in the order in which groups first occur.

    Raises DataError that names the row if one has no group.
    """
    number_of: dict[str, int] = {}
    numbers = []
    for row, cell in enumerate(table.columns[column]):
        if is_empty(cell):
            raise DataError(
                f"{table.name_row(row)}: no {column}; every image needs a group if data.columns.group is {column}"
            )
        numbers.append(number_of.setdefault(_to_text(cell), len(number_of)))
    return np.array(numbers, np.int64)


def is_empty(cell: Any) -> bool:
    """Return whether a cell holds nothing: no value, no text but blanks, or a float that is no number."""
    if cell is None:
        return True
    if isinstance(cell, float):
        return math.isnan(cell)
    return isinstance(cell, str) and not cell.strip()


def _read_single(table: Table, column: str, trained: NDArray[np.bool_]) -> TableLabels:
    names = []
    for row, cell in enumerate(table.columns[column]):
        if is_empty(cell):
            return TableLabels(unlabelled=f"{table.name_row(row)} has no {column}")
        names.append(_name_class(table, row, cell))
    classes = _sort_classes({names[row] for row in np.flatnonzero(trained).tolist()})
    number_of = {name: number for number, name in enumerate(classes)}
    numbers = [_find_number(table, row, name, number_of) for row, name in enumerate(names)]
    return TableLabels(classes, numbers=np.array(numbers, np.int64))


def _read_flags(table: Table, columns: Sequence[str]) -> TableLabels:
    """Read a column of 0 and 1 for each class."""
    targets = np.zeros((len(table), len(columns)), bool)
    for number, column in enumerate(columns):
        for row, cell in enumerate(table.columns[column]):
            targets[row, number] = _read_flag(table, row, column, cell)
    return TableLabels(tuple(columns), targets=targets)


def _read_flag(table: Table, row: int, column: str, cell: Any) -> bool:
    # pandas writes a column with gaps as 0.0 and 1.0
    text = str(cell).strip().lower().removesuffix(".0")
    if text not in _FLAGS:
        raise DataError(
            f"{table.name_row(row)}: {column} is {describe_value(cell)}, not 0 or 1; a column of data.columns.label "
            "says of every image whether it has that label"
        )
    return _FLAGS[text]


def _split_cell(table: Table, row: int, column: str, cell: Any, separator: str | None) -> list[str]:
    """Return the labels in a cell, none if it is empty."""
    if isinstance(cell, (list, tuple)):
        return [_name_class(table, row, each) for each in cell]
    if is_empty(cell):
        return []
    if separator is None:
        raise DataError(f"{table.name_row(row)}: {column} is {describe_value(cell)}, and in other rows a list")
    parts = map(str.strip, _name_class(table, row, cell).split(separator))
    return list(filter(None, parts))


def _name_class(table: Table, row: int, cell: Any) -> str:
    if not isinstance(cell, (str, int, float)):
        raise DataError(f"{table.name_row(row)}: {describe_value(cell)} is no name of a class")
    return _to_text(cell)


def _to_text(cell: Any) -> str:
    """Return a cell as text; a whole number is written without a fraction, whatever its type."""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).strip()


def _sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    ordered = sorted(names)
    if all(name.removeprefix("-").isdecimal() for name in ordered):
        ordered.sort(key=int)
    return tuple(ordered)


def _find_number(table: Table, row: int, name: str, number_of: dict[str, int]) -> int:
    # what is not trained cannot be measured
    if name not in number_of:
        raise DataError(
            f"{table.name_row(row)}: class {name} is not among those of the training part "
            f"({list_names(list(number_of), most=8)})"
        )
    return number_of[name]
