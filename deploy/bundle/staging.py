"""Writing a bundle whole or not at all: into a temporary folder beside its final path, which is then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ehm.deploy.bundle.manifest import CARD, MANIFEST
from ehm.errors import ExportError, WriteError
from ehm.storage.names import refuse_undecodable
from ehm.storage.reading import hash_file, read_json
from ehm.storage.writing import flush_to_disk, report_write_errors

__all__ = ["stage_bundle"]


@contextmanager
def stage_bundle(out: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes ``out`` when the block ends, and vanishes if it raises.

    An earlier bundle at ``out`` is replaced; anything else there, an edited card included, raises ExportError before
    the block begins. A WriteError of the block names the file by the path that it would have had in ``out``.
    """
    out = Path(os.path.abspath(out))
    refuse_undecodable(out, "ONNX")
    folder = out.with_name(f".{out.name}-partial")
    replaced = out.with_name(f".{out.name}-replaced")
    if replaced.is_dir() and not out.exists():  # an export was killed between the two renames
        replaced.rename(out)
    _refuse_foreign_files(out)
    for stale in (folder, replaced):  # what a killed export left
        shutil.rmtree(stale, ignore_errors=True)
    try:
        with report_write_errors(out):
            folder.mkdir(parents=True)
        yield folder
        with report_write_errors(out):
            for path in (*folder.iterdir(), folder):  # complete after a power cut too
                flush_to_disk(path)
            # a folder cannot be renamed onto one that has files, so the old bundle steps aside first
            if out.exists():
                out.rename(replaced)
            folder.rename(out)
            flush_to_disk(out.parent)
    except WriteError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise WriteError(_final_path(Path(error.path), folder, out), error.reason, error.remedy) from None
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _final_path(path: Path, folder: Path, out: Path) -> Path:
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
        card_hash = files[CARD]["sha256"] if CARD in files else None
    except (ExportError, AttributeError, TypeError, KeyError):
        raise ExportError(f"{out}: exists and is not a bundle; {advice}") from None
    if names - own_names:
        raise ExportError(f"{out}: holds {sorted(names - own_names)[0]}, which is not part of the bundle; {advice}")
    if CARD in names and hash_file(out / CARD) != card_hash:
        raise ExportError(f"{out}: its {CARD} was edited, and would be lost; {advice}")
