"""Curves for TensorBoard, written by the run itself.

tensorboardX writes from a thread of its own behind a queue of ten events. A full disk ends that thread without a word,
the queue fills, and the run then waits for it for ever. Here, data that cannot be written is an error of the run.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ehm.storage.writing import report_write_errors

__all__ = ["Curves"]

_FLUSH_SECONDS = 30
"""Longest time for which new points are kept in memory; a flush waits for the disk."""


class Curves:
    """An event file of TensorBoard in ``folder``. With ``first_step`` later values of an earlier attempt are hidden.

    Every method raises WriteError if the disk is full.
    """

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        from tensorboardX.record_writer import RecordWriter

        self._folder = folder
        self._last_flush = time.monotonic()
        with report_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard looks for the middle of this name
            file = folder / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
            self._writer = RecordWriter(str(file))
            try:
                self._write_event(file_version="brain.Event:2")
                if first_step:
                    # TensorBoard drops the points of earlier files from this step on
                    self._write_event(step=first_step, session_log={"status": "START"})
                self._writer.flush()
            except OSError:
                with suppress(OSError):
                    self._writer.close()
                raise

    def add_values(self, step: int, values: Mapping[str, float]) -> None:
        """Append ``values`` as they stand after ``step`` steps."""
        points = [{"tag": name, "simple_value": value} for name, value in values.items()]
        with report_write_errors(self._folder):
            self._write_event(step=step, summary={"value": points})
            if time.monotonic() - self._last_flush > _FLUSH_SECONDS:
                self._writer.flush()
                self._last_flush = time.monotonic()

    def close(self) -> None:
        """Write what is still in memory, and close the file."""
        with report_write_errors(self._folder):
            self._writer.close()

    def _write_event(self, **fields: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write(Event(wall_time=time.time(), **fields).SerializeToString())
