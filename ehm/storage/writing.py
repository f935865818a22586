"""Writing files and folders so that each is complete or absent, and a full disk is one clear sentence.

Every writer of ehm goes through :func:`replace_file`, :func:`replace_folder` or, if it appends to a file, through
:func:`report_write_errors`. A training run adds which of its checkpoints survived
(:meth:`ehm.training.run.Run.explain_write_errors`).
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ehm.errors import EhmError, WriteError

__all__ = ["rename_all", "replace_file", "replace_folder", "report_write_errors", "write_json", "write_text"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Error numbers of a full disk: no space, over a quota, larger than a file may be."""
_RUST_ERROR_NUMBER = re.compile(r"\(os error (\d+)\)")
"""The form in which libraries written in Rust (safetensors) give the operating system's error number."""


@contextmanager
def replace_file(path: Path, shared: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, and rename it to ``path`` when the block ends.

    If the block fails, the temporary file is removed, and a file that was at ``path`` before is still there. Several
    processes may write a ``shared`` file at once. Raises WriteError with the name of ``path`` if the file cannot be
    written.
    """
    # the suffix stays, because np.save and faiss look at it; a name without a random part is used again, so that what
    # a killed writer left does not stay for ever
    temporary = path.with_name(f".{path.name}")
    if shared:
        temporary = path.with_name(f".{secrets.token_hex(4)}-{path.name}")
    with report_write_errors(path):
        try:
            # mkdir would call this "File exists", which names the wrong problem
            if path.parent.exists() and not path.parent.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "")
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside ``path``, and rename it to ``path`` when the block ends and its files are on the disk.

    If the block fails, the new folder is removed, and a folder that was at ``path`` before is still there. Raises
    WriteError with the name of ``path`` if the folder cannot be made or renamed; writers in the block report their own.
    """
    temporary = path.with_name(f".{path.name}-partial")
    replaced = path.with_name(f".{path.name}-replaced")
    if replaced.is_dir() and not path.exists():  # an earlier writer was killed between its two renames
        replaced.rename(path)
    for stale in (temporary, replaced):
        shutil.rmtree(stale, ignore_errors=True)
    try:
        with report_write_errors(path):
            temporary.mkdir(parents=True)
        yield temporary
        with report_write_errors(path):
            for written in (*temporary.rglob("*"), temporary):  # complete after a power cut too
                _flush_to_disk(written)
            moves = [(temporary, path)]
            if path.exists():  # a folder cannot be renamed onto one that has files: the earlier one steps aside
                moves.insert(0, (path, replaced))
            rename_all(moves)
            _flush_to_disk(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def rename_all(moves: Iterable[tuple[Path, Path]]) -> None:
    """Rename the first path of each pair to the second, in order; if one fails, those before it are taken back."""
    done: list[tuple[Path, Path]] = []
    try:
        for old, new in moves:
            old.rename(new)
            done.append((old, new))
    except BaseException:  # an interrupt too
        for old, new in reversed(done):
            new.rename(old)
        raise


def write_text(path: Path, text: str) -> Path:
    r"""Write ``text`` to ``path`` in UTF-8, complete or not at all; lone surrogates become ``\udce9``, as in JSON."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


def write_json(path: Path, values: Mapping[str, Any]) -> Path:
    """Write ``values`` to ``path`` as JSON that people can read, complete or not at all."""
    return write_text(path, json.dumps(values, indent=2) + "\n")


@contextmanager
def report_write_errors(path: Path | str) -> Iterator[None]:
    """Turn the operating system's refusal to write, in whatever form a library passes it on, into a WriteError.

    The message names ``path``. Only writing belongs in the block, as any OSError counts.
    """
    try:
        yield
    except (EhmError, BrokenPipeError):  # a reader of standard output that has gone away is no error of a file
        raise
    except OSError as error:
        raise _describe_failure(path, error.errno, str(error)) from None
    except Exception as error:
        # safetensors raises errors of its own, faiss RuntimeError; both quote the operating system
        number = _find_error_number(str(error))
        if number is None:
            raise
        raise _describe_failure(path, number, str(error)) from None


def _describe_failure(path: Path | str, number: int | None, text: str) -> WriteError:
    """Return the error for ``path``: the reason that the operating system's ``number`` stands for, and a remedy."""
    if number is None:  # NumPy says no more than "1000 requested and 496 written"
        number = errno.ENOSPC
        reason = f"it was cut off ({text}), as on a full disk"
    else:
        reason = os.strerror(number)
    remedy = "free some space, or write to another disk" if number in _FULL else "see that it can be written to"
    return WriteError(path, reason, remedy)


def _find_error_number(text: str) -> int | None:
    """Return the error number of the operating system that ``text`` quotes, or None."""
    # what a library raises has only a text: from Rust with the number, from C++ with the words
    if match := _RUST_ERROR_NUMBER.search(text):
        return int(match[1])
    for number in (*_FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO):
        if f"({os.strerror(number)})" in text:
            return number
    return None


def _flush_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
