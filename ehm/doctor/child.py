"""Questions that need a framework, asked in child processes: one that crashes or hangs loses only its own answer."""

from __future__ import annotations

import os
import subprocess
import sys
from json import loads
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


def ask_child(code: str, *arguments: str, patience: float | None = None) -> tuple[Any, str]:
    """Run ``code`` in a child process and return the last line of JSON that it prints.

    Without one, or after ``patience`` seconds, returns None and the reason.
    """
    if patience is None:
        patience = PATIENCE
    command = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, **ENVIRONMENT}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=patience, check=False)
    except subprocess.TimeoutExpired:
        return None, f"no answer within {patience} seconds"
    if done.returncode:
        last_words = done.stderr.strip().splitlines() or [f"ended by signal or status {done.returncode}"]
        return None, last_words[-1]
    for line in reversed(done.stdout.splitlines()):  # a vendor's library may have the last word
        try:
            answer = loads(line)
        except ValueError:
            continue
        return answer, ""
    return None, "no answer"
