"""Read the columns of a table: a CSV file, a file of JSON lines, or a Parquet file."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ehm.data.sources.inventory import list_names
from ehm.errors import DataError
from ehm.installation import build_install_command
from ehm.storage.reading import parse_json, read_rows, shorten

__all__ = ["TABLE_SUFFIXES", "Table", "is_table", "list_columns", "read_table"]

_DELIMITERS = (",", ";", "\t")
"""The delimiters of a CSV file; the first one that finds the wanted column in the header is taken."""


@dataclass(frozen=True)
class Table:
    """The rows of ``file``: the values of each column that was read, and the number of each row's line.

    A row of a Parquet file has no line, and is known by its number from 1: ``unit`` says which it is.
    """

    file: Path
    columns: dict[str, list[Any]]
    lines: list[int]
    unit: str = "line"

    def __len__(self) -> int:
        return len(self.lines)

    def name_row(self, row: int) -> str:
        """Return where a row stands, for messages."""
        return f"{self.file}: {self.unit} {self.lines[row]}"


def is_table(path: str | Path) -> bool:
    """Return whether a path is that of an existing file whose suffix is a table's."""
    file = Path(path).expanduser()
    return file.suffix.lower() in TABLE_SUFFIXES and file.is_file()


def list_columns(file: Path, wanted: str) -> list[str]:
    """Return the names of the columns of a table; ``wanted`` is one of them, by which a CSV file's delimiter is known.

    Raises DataError if the file cannot be read as what its suffix says.
    """
    return _READERS[file.suffix.lower()].list_columns(file, wanted)


def read_table(file: Path, columns: Sequence[str]) -> Table:
    """Read ``columns`` of a table, the first of which is the path of an image.

    The cells of a CSV file are texts, and empty if they are missing; those of the others may be anything, and None.
    Raises DataError that names the columns there are if one is missing.
    """
    found = list_columns(file, columns[0])
    if not found:
        raise DataError(f"{file}: has no columns: it is empty")
    for name in columns:
        if name not in found:
            raise DataError(f"{file}: has no column {name}, but {list_names(found, most=12)}; set data.columns")
    return _READERS[file.suffix.lower()].read(file, columns)


def _list_csv_columns(file: Path, wanted: str) -> list[str]:
    header: list[str] = []
    for delimiter in _DELIMITERS:
        header = _read_header(file, delimiter)
        if wanted in header:
            return header
    return _read_header(file, _DELIMITERS[0])


def _read_header(file: Path, delimiter: str) -> list[str]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            return next(csv.reader(stream, delimiter=delimiter), [])
    except OSError as problem:
        raise DataError(f"{file}: not a table: {problem.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{file}: not a table in UTF-8; save it in that encoding") from None
    except csv.Error as problem:
        raise DataError(f"{file}: not a table: {problem}") from None


def _read_csv(file: Path, columns: Sequence[str]) -> Table:
    delimiter = next(each for each in _DELIMITERS if columns[0] in _read_header(file, each))
    values: dict[str, list[Any]] = {name: [] for name in columns}
    lines = []
    for line, row in read_rows(file, columns, delimiter):
        for name, cells in values.items():
            cells.append(row[name])
        lines.append(line)
    return Table(file, values, lines)


def _list_json_columns(file: Path, wanted: str) -> list[str]:
    # objects need not have the same keys, and any of them may be a column
    names: dict[str, None] = {}
    for _, row in _read_json_lines(file):
        names |= dict.fromkeys(row)
    return list(names)


def _read_json(file: Path, columns: Sequence[str]) -> Table:
    values: dict[str, list[Any]] = {name: [] for name in columns}
    lines = []
    for line, row in _read_json_lines(file):
        for name, cells in values.items():
            cells.append(row.get(name))
        lines.append(line)
    return Table(file, values, lines)


def _read_json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the object of each line that is not blank, with the number of the line."""
    try:
        with file.open("rb") as stream:
            for line, text in enumerate(stream, start=1):
                if not text.strip():
                    continue
                row = parse_json(text.removeprefix(b"\xef\xbb\xbf"), f"{file}: line {line}", DataError, "JSON lines")
                if not isinstance(row, dict):
                    raise DataError(f"{file}: line {line}: not an object in braces, with the columns as its keys")
                yield line, row
    except OSError as problem:
        raise DataError(f"{file}: not a table: {problem.strerror}") from None


def _list_parquet_columns(file: Path, wanted: str) -> list[str]:
    return list(_open_parquet(file).schema_arrow.names)


def _read_parquet(file: Path, columns: Sequence[str]) -> Table:
    from pyarrow import ArrowException

    opened = _open_parquet(file)
    try:
        table = opened.read(columns=list(columns))
        values = {name: table.column(name).to_pylist() for name in columns}
    except (OSError, ArrowException, UnicodeDecodeError) as problem:  # the footer is whole, and a page is not
        reason = shorten(str(problem))
        raise DataError(f"{file}: a damaged Parquet file: {reason}; write or copy it again") from None
    return Table(file, values, list(range(1, table.num_rows + 1)), unit="row")


def _open_parquet(file: Path) -> Any:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        command = build_install_command("tables")
        raise DataError(f"{file}: Parquet files are read by pyarrow; {command}") from None
    try:
        return parquet.ParquetFile(file)
    except (OSError, ArrowException) as problem:
        raise DataError(f"{file}: not a Parquet file: {problem}") from None


@dataclass(frozen=True)
class _Reader:
    """The functions that read one kind of table."""

    list_columns: Callable[[Path, str], list[str]]
    read: Callable[[Path, Sequence[str]], Table]


_CSV = _Reader(_list_csv_columns, _read_csv)
_JSON_LINES = _Reader(_list_json_columns, _read_json)
_PARQUET = _Reader(_list_parquet_columns, _read_parquet)
_READERS = {
    ".csv": _CSV,
    ".tsv": _CSV,
    ".jsonl": _JSON_LINES,
    ".ndjson": _JSON_LINES,
    ".parquet": _PARQUET,
}
TABLE_SUFFIXES = frozenset(_READERS)
"""Suffixes of the files that are read as tables of images."""
