"""Reading text, JSON and CSV that users give: whatever is wrong with a file becomes one short sentence about it."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ehm.errors import DataError, EhmError

__all__ = ["describe_value", "hash_file", "join_some", "parse_json", "read_json", "read_rows", "read_text", "shorten"]

_LIMIT = 120
"""Most characters of a value, or of a library's message, that are shown."""
_SHOWN = 3
"""Most problems that an error message lists."""


def shorten(text: str, limit: int = _LIMIT) -> str:
    """Return ``text`` on one line of at most ``limit`` characters."""
    # cut first: a user's file can hold a value of many megabytes
    text = " ".join(text[: 10 * limit].split())
    if len(text) <= limit:
        return text
    return f"{text[: limit - 4]} ..."


def describe_value(value: Any, limit: int = _LIMIT) -> str:
    """Return ``value`` as Python writes it, on one line of at most ``limit`` characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more than 4,300 digits; lists in lists without end
        text = f"a value of type {type(value).__name__} that is too long to print"
    return shorten(text, limit)


def join_some(problems: Sequence[str]) -> str:
    """Join the first three ``problems``, and say how many more there are."""
    joined = "; ".join(problems[:_SHOWN])
    # a file that is another one than it should be has hundreds of them, and the first ones tell which it is
    if len(problems) > _SHOWN:
        joined += f" and {len(problems) - _SHOWN} more"
    return joined


def read_text(file: Path, error: type[EhmError] = DataError, what: str = "a text") -> str:
    """Return the text of ``file``, which is UTF-8 with or without a byte order mark.

    Else raise ``error``: the file is not ``what`` was expected.
    """
    try:
        content = file.read_bytes()
    except OSError as problem:
        raise error(f"{file}: not {what}: {problem.strerror}") from None
    try:
        # Windows editors put a byte order mark before the text, which JSON and YAML would refuse
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        # the line, and not the offset, is what an editor shows
        line = content.count(b"\n", 0, problem.start) + 1
        raise error(
            f"{file}: not {what} in UTF-8: byte 0x{content[problem.start]:02x} in line {line}; save it in that encoding"
        ) from None


def read_json(file: Path, error: type[EhmError] = DataError, what: str = "JSON") -> Any:
    """Return what the JSON in ``file`` means; else raise ``error``: the file is not ``what`` was expected."""
    return parse_json(read_text(file, error, what), str(file), error, what)


def parse_json(text: str | bytes, origin: str, error: type[EhmError] = DataError, what: str = "JSON") -> Any:
    """Return what ``text`` means as JSON; else raise ``error``: the file ``origin`` is not ``what`` was expected."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as problem:
        reason = f"{problem.msg} in line {problem.lineno}, column {problem.colno}"
    except RecursionError:
        reason = "its lists or sections are nested too deeply"
    except ValueError as problem:  # bytes that are not UTF-8, or an integer of more than 4,300 digits
        reason = shorten(str(problem))
    raise error(f"{origin}: not {what}: {reason}")


def read_rows(file: Path, columns: Sequence[str], delimiter: str = ",") -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a CSV file under the names of its columns, each with the number of its last line.

    A value that a row lacks is an empty string. Raises DataError if the file is no CSV in UTF-8 or lacks ``columns``.
    """
    # the csv module needs the line ends as they are: a quoted value may hold some
    with file.open(newline="", encoding="utf-8-sig") as stream:
        rows = csv.DictReader(stream, restval="", delimiter=delimiter)
        try:
            if not set(columns) <= set(rows.fieldnames or ()):
                found = shorten(",".join(rows.fieldnames or ()))
                raise DataError(f"{file}: expected the columns {','.join(columns)}, not {found}")
            for row in rows:
                yield rows.line_num, row
        except UnicodeDecodeError:
            place = f"after line {rows.line_num}"
            raise DataError(f"{file}: not a table in UTF-8 {place}; save it in that encoding") from None
        except csv.Error as problem:
            place = f"after line {rows.line_num}"
            raise DataError(f"{file}: not a table {place}: {shorten(str(problem))}") from None


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    # in pieces: a file of weights may be larger than the memory
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
