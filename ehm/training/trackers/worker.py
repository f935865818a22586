"""The process of a tracker: it reads calls as lines of JSON, passes them to the tracker, and ends after the last one.

:mod:`ehm.training.trackers.process` starts it as ``python -m ehm.training.trackers.worker``. The output of the library,
and the traceback of a failure, go to standard error, which is a file in the run's folder.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from threading import Timer
from typing import Any

from ehm.storage.reading import shorten
from ehm.storage.writing import write_json
from ehm.training.trackers.base import Status, TrackedRun, Tracker
from ehm.training.trackers.registry import make_tracker

__all__ = ["describe_error", "main"]

_END_SECONDS = 90.0
"""Longest time that the end may take. If the run was killed, nobody else stops a library that waits for a server."""


def main() -> None:
    """Carry out the calls that come on standard input."""
    # standard output is kept for replies: what the library prints there goes to standard error
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def reply(message: dict[str, Any]) -> None:
        # nobody reads replies if the run was killed
        with suppress(OSError):
            replies.write(json.dumps(message) + "\n")
            replies.flush()

    try:
        _carry_out(sys.stdin, reply)
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        reply({"failure": describe_error(error)})
        # at once, because exit handlers of the library may wait for the server that has just failed
        os._exit(1)


def describe_error(error: Exception) -> str:
    """Return the kind of an error and its message, in one short line."""
    message = " ".join(str(error).split())
    return shorten(f"{type(error).__name__}: {message}" if message else type(error).__name__, 300)


def _carry_out(lines: Iterable[str], reply: Callable[[dict[str, Any]], None]) -> None:
    tracker: Tracker | None = None
    # if the calls end without "finish", the run was killed
    status: Status = "stopped"
    for line in lines:
        call = json.loads(line)
        kind = call["call"]
        if kind == "start":
            tracker = _start(call, reply)
        elif kind == "finish":
            status = call["status"]
            break
        elif tracker is not None and kind == "log":
            tracker.log(call["step"], call["values"])
        elif tracker is not None and kind == "add_picture":
            tracker.add_picture(call["step"], call["name"], Path(call["path"]))
    limit = Timer(_END_SECONDS, os._exit, args=(1,))
    limit.daemon = True
    limit.start()
    if tracker is not None:
        tracker.finish(status)


def _start(call: dict[str, Any], reply: Callable[[dict[str, Any]], None]) -> Tracker:
    """Begin the run in the tracker, and write its id to a file for a resumed run."""
    name = call["tracker"]
    description = call["run"]
    folder = Path(description["folder"])
    stored = folder / "trackers" / f"{name}.json"
    first_step = description["first_step"]
    known = None
    if first_step:
        # if the file is missing or cannot be read, the run is a new one in the tracker
        with suppress(OSError, ValueError, KeyError):
            known = json.loads(stored.read_text(encoding="utf-8"))["id"]
    tracker = make_tracker(name)
    started = tracker.start(TrackedRun(description["name"], folder, description["settings"], first_step, known))
    write_json(stored, {"id": started.id, "address": started.address})
    if started.address is not None:
        reply({"address": started.address})
    return tracker


if __name__ == "__main__":
    main()
