"""Choose the columns of the images and of their classes among those of a Parquet or Arrow file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ehm.data.sources.inventory import list_names
from ehm.errors import DataError

if TYPE_CHECKING:
    import pyarrow

    from ehm.config.sources import TableColumns
    from ehm.data.sources.rows.files import RowFile

__all__ = ["RowColumns", "choose_columns", "holds_image_bytes"]

_IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "image_bytes", "bytes")
"""Names that decide if several columns hold bytes."""
_BYTES = "bytes"
_PATH = "path"


@dataclass(frozen=True)
class RowColumns:
    """The columns of the images' bytes, of their names and of their classes; the last two may be None.

    ``classes`` are the names of the classes, if the file says them.
    """

    image: str
    name: str | None
    label: str | None
    classes: tuple[str, ...] = ()


def holds_image_bytes(schema: pyarrow.Schema) -> bool:
    """Return whether a file has a column of bytes, rather than paths alone."""
    return bool(_find_bytes(schema))


def choose_columns(file: RowFile, name: str, wanted: TableColumns) -> RowColumns:
    """Return the columns to read of a file called ``name``.

    The images are in the column that ``wanted.path`` names, in the one that the file says has images, or in the only
    one that holds bytes. Raises DataError that names the columns if none or several fit.
    """
    schema = file.schema
    features = file.features
    candidates = _find_bytes(schema)
    described = [column for column, feature in features.items() if _has_type(feature, "Image") and column in candidates]
    named = [column for column in _IMAGE_NAMES if column in candidates]
    if wanted.path in candidates:
        chosen = wanted.path
    elif len(described) == 1:
        chosen = described[0]
    elif len(candidates) == 1 or named:
        chosen = named[0] if named else next(iter(candidates))
    elif not candidates:
        raise DataError(f"data.source: {name} has no column of images as bytes, but {list_names(schema.names, 12)}")
    else:
        raise DataError(
            f"data.source: {name} has several columns of bytes ({list_names(list(candidates), 12)}); name that of the "
            "images as data.columns.path"
        )
    image = candidates[chosen]
    path = f"{chosen}.{_PATH}" if image != chosen and schema.field(chosen).type.get_field_index(_PATH) >= 0 else None
    label = _choose_label(schema, name, wanted)
    classes = features.get(label or "", {}).get("names") or ()
    return RowColumns(image, path, label, tuple(map(str, classes)))


def _find_bytes(schema: pyarrow.Schema) -> dict[str, str]:
    """Return the columns that hold bytes, and the part of each that does: itself, or ``bytes`` of a structure."""
    from pyarrow import types

    found: dict[str, str] = {}
    for field in schema:
        if types.is_binary(field.type) or types.is_large_binary(field.type):
            found[field.name] = field.name
        elif types.is_struct(field.type) and field.type.get_field_index(_BYTES) >= 0:
            inner = field.type.field(_BYTES).type
            if types.is_binary(inner) or types.is_large_binary(inner):
                found[field.name] = f"{field.name}.{_BYTES}"
    return found


def _choose_label(schema: pyarrow.Schema, name: str, wanted: TableColumns) -> str | None:
    """Return the column of the classes: the one that is wanted, else ``label`` if there is one."""
    from pyarrow import types

    if isinstance(wanted.label, tuple):
        raise DataError(f"data.columns.label: {name} holds images, which have one class each; name one column")
    label = wanted.label or "label"
    if label not in schema.names:
        if wanted.label is None:
            return None
        raise DataError(f"data.columns.label: {name} has no column {label}, but {list_names(schema.names, 12)}")
    kind = schema.field(label).type
    if types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind) or types.is_dictionary(kind):
        return label
    if wanted.label is None:
        return None
    raise DataError(f"data.columns.label: {label} of {name} holds {kind}; expected whole numbers or texts")


def _has_type(feature: Any, kind: str) -> bool:
    return isinstance(feature, dict) and feature.get("_type") == kind
