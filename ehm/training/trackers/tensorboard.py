"""TensorBoard: an event file in the run's folder, written by the run itself.

tensorboardX would write it in a thread that takes events from a queue of ten. A full disk ends that thread silently,
the queue fills up, and the run waits for ever. Here the run writes the file itself, and gets the error.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from ehm.storage.writing import report_write_errors
from ehm.training.trackers.base import Status, TrackedRun, TrackerRun

__all__ = ["TensorBoardTracker"]

_FLUSH_SECONDS = 30
"""Longest time that new points stay in memory; they are not flushed at once, because a flush waits for the disk."""
_COLOUR_CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}


class TensorBoardTracker:
    """An event file of TensorBoard in ``tensorboard/``.

    The file of a resumed run hides the values of earlier files for the steps that are taken again. Every method raises
    WriteError if the disk is full.
    """

    def start(self, run: TrackedRun) -> TrackerRun:
        """Create an event file; for a resumed run, it hides the points of earlier files after the first step."""
        from tensorboardX.record_writer import RecordWriter

        self._folder = run.folder / "tensorboard"
        self._last_flush = time.monotonic()
        with report_write_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard recognises event files by "tfevents" in the name
            file = self._folder / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
            self._writer = RecordWriter(str(file))
            try:
                self._write_event(file_version="brain.Event:2")
                if run.first_step:
                    # TensorBoard drops the points of earlier files from this step on
                    self._write_event(step=run.first_step, session_log={"status": "START"})
                self._writer.flush()
            except OSError:
                with suppress(OSError):
                    self._writer.close()
                raise
        return TrackerRun()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append ``values`` after ``step`` steps."""
        points = [{"tag": name, "simple_value": value} for name, value in values.items()]
        with report_write_errors(self._folder):
            self._write_event(step=step, summary={"value": points})
            if time.monotonic() - self._last_flush > _FLUSH_SECONDS:
                self._writer.flush()
                self._last_flush = time.monotonic()

    def add_picture(self, step: int, name: str, path: Path) -> None:
        """Append a PNG file unchanged, for the tab of images."""
        with Image.open(path) as picture:
            width, height = picture.size
            channels = _COLOUR_CHANNELS.get(picture.mode, 3)
        image = {
            "width": width,
            "height": height,
            "colorspace": channels,
            "encoded_image_string": path.read_bytes(),
        }
        with report_write_errors(self._folder):
            self._write_event(step=step, summary={"value": [{"tag": name, "image": image}]})

    def finish(self, status: Status) -> None:
        """Write what is still in memory, and close the file."""
        with report_write_errors(self._folder):
            self._writer.close()

    def _write_event(self, **fields: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write(Event(wall_time=time.time(), **fields).SerializeToString())
