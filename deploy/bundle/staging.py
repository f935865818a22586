"""Writing a bundle whole or not at all: into a temporary folder beside its final path, which is then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ehm.deploy.bundle.manifest import CARD, MANIFEST
from ehm.errors import ExportError, WriteError
from ehm.storage.names import refuse_undecodable
from ehm.storage.reading import hash_file, read_json
from ehm.storage.writing import replace_folder

__all__ = ["stage_bundle"]


@contextmanager
def stage_bundle(out: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes ``out`` when the block ends, and vanishes if it raises.

    An earlier bundle at ``out`` is replaced; anything else there, an edited card included, raises ExportError before
    the block begins. A WriteError of the block names the file by the path that it would have had in ``out``.
    """
    out = Path(os.path.abspath(out))
    refuse_undecodable(out, "ONNX")
    _refuse_foreign_files(out)
    with replace_folder(out) as folder:
        try:
            yield folder
        except WriteError as error:
            raise WriteError(_find_final_path(Path(error.path), folder, out), error.reason, error.remedy) from None


def _find_final_path(path: Path, folder: Path, out: Path) -> Path:
    """Return the path that a file of the temporary ``folder`` would have had in ``out``, which the user named."""
    if path.is_relative_to(folder):
        return out / path.relative_to(folder)
    return path


def _refuse_foreign_files(out: Path) -> None:
    """Raise ExportError unless ``out`` is absent, empty, or a bundle without any file of the user's."""
    if not out.exists() and not out.is_symlink():
        return
    advice = "choose another --out, or remove it first"
    if out.is_symlink() or not out.is_dir():
        raise ExportError(f"{out}: exists and is not a folder; {advice}")
    names = {file.name for file in out.iterdir()}
    if not names:
        return
    try:
        files = read_json(out / MANIFEST, ExportError)["files"]
        own_names = {MANIFEST, *files}
        # bundles of early versions have no card
        card_hash = files[CARD]["sha256"] if CARD in files else None
    except (ExportError, AttributeError, TypeError, KeyError):
        raise ExportError(f"{out}: exists and is not a bundle; {advice}") from None
    if names - own_names:
        raise ExportError(f"{out}: holds {sorted(names - own_names)[0]}, which is not part of the bundle; {advice}")
    if CARD in names and hash_file(out / CARD) != card_hash:
        raise ExportError(f"{out}: its {CARD} was edited, and would be lost; {advice}")
