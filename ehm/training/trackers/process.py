"""A tracker in a process of its own, so that its library can neither stop, slow down nor outlive the run.

The run only appends to a queue; a thread passes the calls on to the process (:mod:`ehm.training.trackers.worker`), one
line of JSON each. The process also keeps the threads, signal handlers, output and exit handlers of the library away
from the run.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

from ehm.console import console
from ehm.processors import spread_children
from ehm.training.trackers.base import Status, TrackedRun, TrackerRun

__all__ = ["ProcessTracker", "TrackerFailure"]

_MOST_WAITING = 10_000
"""Calls in the queue, about 5 MB, above which a tracker that does not take them is given up."""
_FINISH_SECONDS = 60.0
"""Longest time that the end of a run waits for a tracker to send what is left."""


class TrackerFailure(Exception):  # noqa: N818 - its message is the whole sentence
    """The reason why a tracker gets no further calls, as a sentence for the user."""


class ProcessTracker:
    """The tracker ``name`` of a run, in a process of its own whose output goes to ``trackers/NAME.log``.

    Every call returns at once, except for ``finish``, which takes at most a minute. If the process fails, the next call
    raises TrackerFailure.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.Queue[dict[str, Any] | None] = queue.Queue(_MOST_WAITING)
        self._replies: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._process: subprocess.Popen[str] | None = None

    def start(self, run: TrackedRun) -> TrackerRun:
        """Start the process, which begins the run in the tracker; its address is printed as soon as it is known."""
        folder = run.folder / "trackers"
        folder.mkdir(parents=True, exist_ok=True)
        self._log_file = folder / f"{self._name}.log"
        # with this process's search path, so that the same ehm is imported
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with self._log_file.open("w", encoding="utf-8") as log, spread_children():
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ehm.training.trackers.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env=environment,
                # not interrupted by Ctrl-C: the run is, and then tells the tracker that it was stopped
                start_new_session=True,
            )
        self._reader = Thread(target=_read_replies, args=(self._process, self._replies), daemon=True)
        self._reader.start()
        Thread(target=_pass_calls, args=(self._process, self._calls), daemon=True).start()
        description = {
            "name": run.name,
            "folder": str(run.folder),
            "settings": dict(run.settings),
            "first_step": run.first_step,
        }
        self._send_call({"call": "start", "tracker": self._name, "run": description})
        return TrackerRun()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Pass ``values`` on."""
        self._send_call({"call": "log", "step": step, "values": dict(values)})
        self._check_process()

    def add_picture(self, step: int, name: str, path: Path) -> None:
        """Pass the path of the file on; the process reads it a little later."""
        self._send_call({"call": "add_picture", "step": step, "name": name, "path": str(path)})
        self._check_process()

    def finish(self, status: Status) -> None:
        """Let the process end the run, and wait for it; after a failure, end the process."""
        process = self._process
        if process is None:
            return
        self._process = None
        try:
            self._send_call({"call": "finish", "status": status})
            self._calls.put_nowait(None)
            process.wait(_FINISH_SECONDS)
        except subprocess.TimeoutExpired:
            reason = f"it had not sent everything {_FINISH_SECONDS:g} seconds after the end"
            raise TrackerFailure(f"{reason} ({self._log_file})") from None
        finally:
            if process.poll() is None:
                _kill_process(process)
        self._reader.join()
        self._handle_replies()
        if process.returncode:
            self._report_end(process.returncode)

    def _send_call(self, call: dict[str, Any]) -> None:
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            raise TrackerFailure(f"it takes nothing, and {_MOST_WAITING:,} lines wait ({self._log_file})") from None

    def _check_process(self) -> None:
        """Print the replies of the process; raise TrackerFailure if it has failed."""
        self._handle_replies()
        if self._process is not None and self._process.poll() is not None:
            self._reader.join()
            self._handle_replies()
            self._report_end(self._process.returncode)

    def _handle_replies(self) -> None:
        while not self._replies.empty():
            reply = self._replies.get()
            if "failure" in reply:
                raise TrackerFailure(f"{reply['failure']} ({self._log_file})")
            console.print(f"{self._name}: {reply['address']}")

    def _report_end(self, status: int) -> None:
        raise TrackerFailure(f"its process ended with status {status} ({self._log_file})")


def _pass_calls(process: subprocess.Popen[str], calls: queue.Queue[dict[str, Any] | None]) -> None:
    """Write ``calls`` to the process until there is None."""
    assert process.stdin is not None
    # errors mean that the process has ended, which the next call of the run finds out
    with suppress(OSError, ValueError), process.stdin as stream:
        while (call := calls.get()) is not None:
            stream.write(json.dumps(call) + "\n")
            stream.flush()


def _read_replies(process: subprocess.Popen[str], replies: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Collect the replies of the process until it ends."""
    assert process.stdout is not None
    with process.stdout as stream:
        for line in stream:
            replies.put(json.loads(line))


def _kill_process(process: subprocess.Popen[str]) -> None:
    """End the process and those that it has started."""
    if hasattr(os, "killpg"):
        # its process group has the same id, and contains the processes that it has started
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
