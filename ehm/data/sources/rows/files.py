"""Parquet and Arrow files in parts: their columns, their groups of rows, and the values of a column in a group.

A group is a row group of a Parquet file, or a record batch of an Arrow file (its stream format, which the package
``datasets`` saves). pyarrow reads both; nothing in them is executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

from ehm.data.stores.reader import RangeFile
from ehm.data.stores.store import Store, StoredFile
from ehm.errors import DataError
from ehm.installation import build_install_command

if TYPE_CHECKING:
    import pyarrow

__all__ = ["LOCAL", "RowFile", "open_row_file"]

LOCAL = "file://"
"""The beginning of the addresses of files on this machine."""


@dataclass(frozen=True)
class RowFile:
    """An open file; ``rows`` and ``sizes`` are the numbers of rows and of bytes of each group."""

    schema: pyarrow.Schema
    rows: tuple[int, ...]
    sizes: tuple[int, ...]
    opened: Any
    lock: Lock = field(default_factory=Lock)

    @property
    def features(self) -> Mapping[str, Any]:
        """The description of each column that the package ``datasets`` leaves in files that it writes, if it did."""
        stored = (self.schema.metadata or {}).get(b"huggingface")
        if stored is None:
            return {}
        try:
            features = json.loads(stored)["info"]["features"]
        except (ValueError, KeyError, TypeError):
            return {}
        return features if isinstance(features, dict) else {}

    @property
    def is_mapped(self) -> bool:
        """True if the file is mapped into memory, where any row is at hand."""
        return isinstance(self.opened, list)

    def read_column(self, group: int, column: str) -> pyarrow.Array:
        """Return the values of a column, or of a part of it (``image.bytes``), in a group; DataError if that fails."""
        import pyarrow

        name, _, part = column.partition(".")
        if self.is_mapped:
            values = self.opened[group].column(name)
        else:
            try:
                with self.lock:
                    table = self.opened.read_row_group(group, columns=[column], use_threads=False)
            except (pyarrow.ArrowException, OSError) as error:
                raise DataError(f"group {group} cannot be read: {' '.join(str(error).split())}") from None
            values = table.column(name).combine_chunks()
            if isinstance(values, pyarrow.ChunkedArray):
                values = pyarrow.concat_arrays(values.chunks)
        return values.field(part) if part else values


def open_row_file(store: Store, file: StoredFile) -> RowFile:
    """Open a file; raises DataError if it is none of these, or if pyarrow is not installed."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"data.source {file}: reading it needs pyarrow, which is not installed; {build_install_command('tables')}"
        ) from None
    is_arrow = file.suffix == ".arrow"
    if is_arrow and not file.address.startswith(LOCAL):
        raise DataError(
            f"data.source {file}: Arrow files are read from folders of this machine; Parquet files anywhere"
        )
    try:
        if is_arrow:
            return _open_arrow(pyarrow.ipc.open_stream(pyarrow.memory_map(file.address.removeprefix(LOCAL))))
        opened = parquet.ParquetFile(RangeFile(store, file))
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"data.source: {file} is not a complete Parquet or Arrow file: {reason}") from None
    groups = [opened.metadata.row_group(number) for number in range(opened.num_row_groups)]
    rows = tuple(group.num_rows for group in groups)
    sizes = tuple(group.total_byte_size for group in groups)
    return RowFile(opened.schema_arrow, rows, sizes, opened)


def _open_arrow(reader: Any) -> RowFile:
    batches = list(reader)
    rows = tuple(batch.num_rows for batch in batches)
    sizes = tuple(batch.nbytes for batch in batches)
    return RowFile(reader.schema, rows, sizes, batches)
