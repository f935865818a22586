"""A tracker from another package, the whole of it: a line of JSON in ``lines.jsonl`` for each call.

``EXAMPLE_TRACKER=METHOD:FAULT`` lets one of its methods raise, hang, or end the process.
"""

import json
import os
import sys
import time

from ehm.training.trackers.base import TrackerRun


class LinesTracker:
    def start(self, run):
        self._file = (run.folder / "lines.jsonl").open("a")
        self._write("start", name=run.name, settings=run.settings, first_step=run.first_step, id=run.id)
        # what libraries do, and what must not be taken for a reply
        print("printed by the library")
        print("complained by the library", file=sys.stderr)
        return TrackerRun(run.id or "run-1", "file:lines.jsonl")

    def log(self, step, values):
        self._write("log", step=step, values=values)

    def add_picture(self, step, name, path):
        self._write("add_picture", step=step, name=name, size=path.stat().st_size)

    def finish(self, status):
        self._write("finish", status=status)
        self._file.close()

    def _write(self, call, **values):
        method, _, fault = os.environ.get("EXAMPLE_TRACKER", "").partition(":")
        if call == method:
            if fault == "hang":
                time.sleep(600)
            if fault == "end":
                os._exit(7)
            raise ConnectionError("the server\nhas gone")
        self._file.write(json.dumps({"call": call, **values}) + "\n")
        self._file.flush()
