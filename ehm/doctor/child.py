"""Questions that need a framework, asked in child processes: one that crashes or hangs loses only its own answer."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from json import loads
from tempfile import TemporaryFile
from typing import Any

__all__ = ["LATE", "PATIENCE", "ask_child"]

PATIENCE = 120
"""Seconds for a child: importing a framework from a cold disk takes tens of them."""
LATE = "no answer within"
"""The beginning of the reason if a child took too long, which says nothing about what it was asked."""

ENVIRONMENT = {
    # Without the guard, importing torch also imports every vendor's plug-in that is installed, wanted or not.
    "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
    # A doctor among the processes of torchrun or msrun asks alone, and does not wait for the others.
    "WORLD_SIZE": "1",
    "MS_WORKER_NUM": "1",
}
_LOOK_SECONDS = 1.0
"""Seconds between two looks whether a child has ended whose standard output stays open."""
_PIECE = 1 << 16
"""Bytes that are read at a time: as many as a pipe holds."""


def ask_child(
    code: str, *arguments: str, patience: float | None = None, tell: Callable[[Any], None] | None = None
) -> tuple[Any, str]:
    """Run ``code`` in a child process and return the last line of JSON that it prints.

    ``tell`` is called with each line of JSON as soon as it is there. Without an answer, or after ``patience`` seconds,
    returns None and the reason.
    """
    if patience is None:
        patience = PATIENCE
    deadline = time.monotonic() + patience
    command = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, **ENVIRONMENT}
    answer: Any = None
    # a file, because a child that fills a pipe which nobody reads would wait for ever
    with TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors) as child:
            try:
                for line in _read_lines(child, deadline):
                    try:
                        answer = loads(line)
                    except ValueError:
                        continue  # a vendor's library may have the last word
                    if tell is not None:
                        tell(answer)
                status = child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                return None, f"{LATE} {patience} seconds"
            finally:
                child.kill()
        errors.seek(0)
        last_words = errors.read().strip().splitlines()
    if status:
        return None, last_words[-1] if last_words else f"ended by signal or status {status}"
    if answer is None:
        return None, "no answer"
    return answer, ""


def _read_lines(child: subprocess.Popen[bytes], deadline: float) -> Iterator[bytes]:
    """Yield the lines that a child prints until it ends, or until ``deadline``.

    Not until its standard output is closed: processes that it started, such as those of a vendor's compiler, may keep
    that open for ever.
    """
    assert child.stdout is not None
    begun = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            has_ended = child.poll() is not None
            if selector.select(0 if has_ended else min(left, _LOOK_SECONDS)):
                piece = os.read(child.stdout.fileno(), _PIECE)
                if not piece:
                    break
                *lines, begun = (begun + piece).split(b"\n")
                yield from lines
            elif has_ended:
                break
    if begun:
        yield begun
