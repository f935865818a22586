"""Questions that need a framework, asked in child processes: one that crashes or hangs loses only its own answer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from json import loads
from tempfile import TemporaryFile
from threading import Timer
from typing import Any

__all__ = ["PATIENCE", "ask_child"]

PATIENCE = 120
"""Seconds for a child: importing a framework from a cold disk takes tens of them."""

ENVIRONMENT = {
    # Without the guard, importing torch also imports every vendor's plug-in that is installed, wanted or not.
    "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
    # A doctor among the processes of torchrun or msrun asks alone, and does not wait for the others.
    "WORLD_SIZE": "1",
    "MS_WORKER_NUM": "1",
}


def ask_child(
    code: str, *arguments: str, patience: float | None = None, tell: Callable[[Any], None] | None = None
) -> tuple[Any, str]:
    """Run ``code`` in a child process and return the last line of JSON that it prints.

    ``tell`` is called with each line of JSON as soon as it is there. Without an answer, or after ``patience`` seconds,
    returns None and the reason.
    """
    if patience is None:
        patience = PATIENCE
    command = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, **ENVIRONMENT}
    answer: Any = None
    # a file, because a child that fills a pipe which nobody reads would wait for ever
    with TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace"
        ) as child:
            timer = Timer(patience, child.kill)
            timer.start()
            try:
                assert child.stdout is not None
                for line in child.stdout:
                    try:
                        answer = loads(line)
                    except ValueError:
                        continue  # a vendor's library may have the last word
                    if tell is not None:
                        tell(answer)
                status = child.wait()
            finally:
                is_late = not timer.is_alive()
                timer.cancel()
                child.kill()
        errors.seek(0)
        last_words = errors.read().strip().splitlines()
    if is_late:
        return None, f"no answer within {patience} seconds"
    if status:
        return None, last_words[-1] if last_words else f"ended by signal or status {status}"
    if answer is None:
        return None, "no answer"
    return answer, ""
