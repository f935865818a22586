"""Print the result of a command: as one JSON document for ``--json``, or as its place for ``--quiet``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ehm.console import print_line
from ehm.plain_values import to_plain

__all__ = ["print_json", "print_place"]


def print_json(result: Any) -> None:
    """Print a result as one JSON document: its fields, ``path`` for a path and ``paths`` for several."""
    document: Any
    if isinstance(result, Path):
        document = {"path": str(result)}
    elif _is_paths(result):
        document = {"paths": [str(path) for path in result]}
    else:
        document = to_plain(result)
    print_line(json.dumps(document, indent=2))


def print_place(result: Any) -> None:
    """Print the paths of a result, one on a line, or if it has no files, its figures."""
    if isinstance(result, Path):
        print_line(str(result))
    elif _is_paths(result):
        for path in result:
            print_line(str(path))
    elif hasattr(result, "out"):
        print_line(str(result.out))
    elif hasattr(result, "show"):
        result.show()


def _is_paths(result: Any) -> bool:
    return isinstance(result, Sequence) and all(isinstance(each, Path) for each in result)
