"""Writing files so that each is complete or absent, and a full disk is one clear sentence.

Every writer of ehm goes through :func:`replace_file` or, if it writes a folder or appends to a file, through
:func:`report_write_errors`. A training run adds which of its checkpoints survived
(:meth:`ehm.training.run.Run.explain_write_errors`).
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ehm.errors import EhmError, WriteError

__all__ = ["flush_to_disk", "replace_file", "report_write_errors", "write_json", "write_text"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Error numbers of a full disk: no space, over a quota, larger than a file may be."""
_RUST_ERROR_NUMBER = re.compile(r"\(os error (\d+)\)")
"""How the libraries that are written in Rust (safetensors) give the operating system's error number."""


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, and rename it to ``path`` when the block ends.

    If the block fails, the temporary file is removed, and a file that was at ``path`` before is still there.
    Raises WriteError with the name of ``path`` if the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}")  # the same suffix: np.save and faiss look at it
    with report_write_errors(path):
        try:
            if path.parent.exists() and not path.parent.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "")
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> Path:
    r"""Write ``text`` to ``path`` in UTF-8, complete or not at all; lone surrogates become ``\udce9``, as in JSON."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


def write_json(path: Path, values: Mapping[str, Any]) -> Path:
    """Write ``values`` to ``path`` as JSON that people can read, complete or not at all."""
    return write_text(path, json.dumps(values, indent=2) + "\n")


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
        raise _write_error(path, error.errno, str(error)) from None
    except Exception as error:
        # safetensors raises errors of its own, faiss RuntimeError; both quote the operating system
        number = _quoted_error_number(str(error))
        if number is None:
            raise
        raise _write_error(path, number, str(error)) from None


def _write_error(path: Path | str, number: int | None, text: str) -> WriteError:
    if number is None:  # NumPy says no more than "1000 requested and 496 written"
        number = errno.ENOSPC
        reason = f"it was cut off ({text}), as on a full disk"
    else:
        reason = os.strerror(number)
    remedy = "free some space, or write to another disk" if number in _FULL else "see that it can be written to"
    return WriteError(path, reason, remedy)


def _quoted_error_number(text: str) -> int | None:
    """Return the error number of the operating system that ``text`` quotes, or None."""
    if match := _RUST_ERROR_NUMBER.search(text):
        return int(match[1])
    for number in (*_FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO):
        if f"({os.strerror(number)})" in text:
            return number
    return None
