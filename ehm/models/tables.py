"""Tables of biases for relative positions: their names, their numbers of rows, and their places in a network.

A table has a row for each of the (2h - 1) * (2w - 1) differences of position among h x w tokens, and a column for each
head. That of a ViT ends with three rows for the class token: from it, to it, and to itself. In pretraining the blocks
of a ViT share one table; downstream each block has its own, as in the published code of BEiT and of SimMIM.
"""

from __future__ import annotations

import math

import numpy as np

from ehm.config import ModelSource
from ehm.config.encoders import EncoderSpec
from ehm.errors import CheckpointError
from ehm.storage.arrays import Arrays, drop_names

__all__ = [
    "CLASS_TOKEN_ROWS",
    "SHARED_TABLE",
    "TABLE",
    "WITH_SETTINGS",
    "average_tables",
    "check_tables",
    "infer_image_size",
    "infer_side",
    "spread_table",
]

TABLE = "relative_position_bias_table"
"""End of the name of every table."""
SHARED_TABLE = f"rel_pos_bias.{TABLE}"
"""Name of the table that all blocks of a ViT share in pretraining."""
CLASS_TOKEN_ROWS = 3
WITH_SETTINGS = "(--set; a command without it takes the run's folder, which says it)"
"""The way to give a size that a file does not say: ehm inspect has no settings."""


def infer_side(rows: int) -> int | None:
    """Return the tokens on the side of the square that has ``rows`` = (2 side - 1)^2 differences; None if none has."""
    root = math.isqrt(max(rows, 0))
    if root * root != rows or root % 2 == 0:  # 2 side - 1 is odd
        return None
    return (root + 1) // 2


def infer_image_size(name: str, rows: int, stride: int, source: ModelSource) -> tuple[int, int]:
    """Infer the height and width in pixels of an image with ``rows`` differences of position in the table ``name``.

    Tokens are ``stride`` pixels apart. ``source.image_size`` is taken if it fits, else a square. Raises CheckpointError
    if neither does.
    """
    # a wide image has a number of differences that a square can have too, so that the settings go first
    size = source.image_size or (0, 0)
    down = size[0] // stride
    across = size[1] // stride
    if (2 * down - 1) * (2 * across - 1) == rows:
        return size
    side = infer_side(rows)
    if side is None:
        raise CheckpointError(
            f"{source.init}: the {rows} relative positions of {name} are those of no square; "
            f"give the height and width as model.image_size {WITH_SETTINGS}"
        )
    return side * stride, side * stride


def check_tables(arrays: Arrays, spec: EncoderSpec, origin: str) -> None:
    """Raise CheckpointError, which begins with ``origin``, if a table does not have the rows that ``spec`` needs."""
    for name, table in arrays.items():
        if not name.endswith(TABLE):
            continue
        height, width = spec.table_grid(name)
        rows = (2 * height - 1) * (2 * width - 1)
        if spec.has_class_token:
            rows += CLASS_TOKEN_ROWS
        if len(table) != rows:
            raise CheckpointError(
                f"{origin}: {name} has {len(table)} rows, where {height} x {width} tokens have {rows}"
            )


def spread_table(arrays: Arrays, depth: int) -> Arrays:
    """Return ``arrays`` with a copy of the shared table, if there is one, in each of ``depth`` blocks."""
    if SHARED_TABLE not in arrays:
        return arrays
    spread = drop_names(arrays, (SHARED_TABLE,))
    for block in range(depth):
        # a copy: the blocks learn apart from now on, and a framework may take the array's memory as it is
        spread[f"blocks.{block}.attn.{TABLE}"] = arrays[SHARED_TABLE].copy()
    return spread


def average_tables(arrays: Arrays) -> Arrays:
    """Return ``arrays`` with the mean of the blocks' tables, if they have any, as the one table that they share."""
    tables = [name for name in arrays if name.startswith("blocks.") and name.endswith(TABLE)]
    if not tables:
        return arrays
    averaged = drop_names(arrays, tables)
    stacked = np.stack([arrays[name] for name in tables])
    averaged[SHARED_TABLE] = stacked.mean(axis=0, dtype=np.float64).astype(np.float32)
    return averaged
