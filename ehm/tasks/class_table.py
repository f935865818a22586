"""The table of classes in a report: all classes if they are few, otherwise the worst ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

__all__ = ["MOST_CLASSES", "make_class_table"]

MOST_CLASSES = 20
"""Classes in a table, at most."""


def make_class_table(
    classes: Sequence[str], columns: Mapping[str, Sequence[str]], worst_first: Sequence[int], figure: str
) -> Table:
    """Return a table with a row for each class and a column for each of ``columns``, with values in class order.

    If there are more than 20 classes, it has the first 20 of ``worst_first``: the numbers of the classes, the one with
    the lowest ``figure`` first.
    """
    # few classes stay in their own order, which readers know
    if len(classes) <= MOST_CLASSES:
        table = Table()
        listed: Sequence[int] = range(len(classes))
    else:
        table = Table(title=f"the {MOST_CLASSES} classes of lowest {figure}")
        listed = worst_first[:MOST_CLASSES]
    table.add_column("class")
    for name in columns:
        table.add_column(name, justify="right")
    for index in listed:
        table.add_row(classes[index], *(values[index] for values in columns.values()))
    return table
