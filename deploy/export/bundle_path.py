"""The path of a bundle, which a notebook shows with what is in it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from ehm.deploy.bundle.manifest import MANIFEST, read_manifest
from ehm.errors import EhmError
from ehm.report.card import Card, CardTable, Cell, render_card
from ehm.report.next_steps import NextStep
from ehm.report.overview import Tile
from ehm.report.python_calls import convert_to_python

if TYPE_CHECKING:
    _AnyPath = Path
else:
    # Path itself cannot be derived from before Python 3.12
    _AnyPath = type(Path())

__all__ = ["BundlePath"]


class BundlePath(_AnyPath):
    """A path like any other; a notebook shows the bundle if it is one."""

    def _repr_html_(self) -> str | None:
        if not (self / MANIFEST).is_file():
            return None
        try:
            manifest = read_manifest(self)
        except EhmError:
            return None
        megabytes = sum(record.bytes for record in manifest.files.values()) / 1e6
        tiles = [
            Tile("Task", manifest.task.replace("_", " ")),
            Tile("Size", f"{megabytes:.1f} MB"),
            Tile("Precisions", ", ".join(manifest.models)),
        ]
        rows = []
        for tensor in (manifest.input, *manifest.outputs):
            rows.append([Cell(tensor.name), Cell(tensor.dtype), Cell(" x ".join(map(str, tensor.shape)))])
        return render_card(
            Card(
                kind="Bundle",
                title=manifest.source.checkpoint,
                tiles=tiles,
                tables=[CardTable(["input and outputs", "type", "shape"], rows)],
                sentences=[manifest.parity.describe()],
                places=[("Folder", Path(self))],
                next_steps=_list_steps(self),
            )
        )


def _list_steps(bundle: Path) -> list[NextStep]:
    path = shlex.quote(str(bundle))
    return [
        NextStep("Use it on photographs", convert_to_python(f"ehm predict {path} PHOTOGRAPHS")),
        NextStep("Measure its speed", convert_to_python(f"ehm bench export {path}")),
        NextStep("Serve it over HTTP, with a page to try it on; in a terminal", f"ehm serve {path}"),
    ]
