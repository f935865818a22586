"""Processes side by side, one a core or a device, with the share of all work that is done and the time that is left."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import BarColumn, TextColumn

from ehm.console import console
from ehm.progress_bar import create_progress, is_progress_shown

__all__ = ["Job", "run_jobs"]

_SECONDS_BETWEEN_LOOKS = 0.5
_LINES_OF_A_STUDY = 20
"""Lines about the progress that are printed in place of a bar, besides one for each job that ends."""
_STEPS = re.compile(rb"^\w+ (\d+)/(\d+) ", re.MULTILINE)
"""The lines that a run prints away from a terminal: its title, and its steps out of all."""
_TAIL_BYTES = 4096


@dataclass
class Job:
    """A command that writes ``log``; it waits for the jobs whose names are in ``after``.

    ``status`` is its exit status once it has ended: None before, and 1 if what it waited for failed.
    """

    name: str
    command: Callable[[str], Sequence[str]]
    """Returns the command line for a device."""
    log: Path
    after: tuple[str, ...] = ()
    status: int | None = None


@dataclass
class _Running:
    job: Job
    device: str
    process: subprocess.Popen[bytes]
    started: float = field(default_factory=time.perf_counter)


def run_jobs(jobs: Sequence[Job], devices: Sequence[str], environment: dict[str, str]) -> None:
    """Run all ``jobs``, one at a time on each of ``devices``, which may name one several times; sets their ``status``.

    A job that fails does not stop the others, except those that wait for it. If this is interrupted, all end.
    """
    waiting = list(jobs)
    running: list[_Running] = []
    free = list(devices)
    meter = _Meter(len(jobs))
    with meter:
        try:
            while waiting or running:
                _drop_hopeless(waiting, jobs, meter)
                for job in _find_ready(waiting, jobs)[: len(free)]:
                    waiting.remove(job)
                    running.append(_start(job, free.pop(0), environment))
                time.sleep(_SECONDS_BETWEEN_LOOKS)
                for each in list(running):
                    each.job.status = each.process.poll()
                    if each.job.status is not None:
                        running.remove(each)
                        free.append(each.device)
                        meter.end(each.job, time.perf_counter() - each.started)
                meter.show(sum(_read_share(each.job.log) for each in running))
        finally:
            _stop(running)


def _find_ready(waiting: Sequence[Job], jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs that need wait no longer, in their order."""
    unfinished = {job.name for job in jobs if job.status != 0}
    return [job for job in waiting if unfinished.isdisjoint(job.after)]


def _drop_hopeless(waiting: list[Job], jobs: Sequence[Job], meter: _Meter) -> None:
    """Give up the jobs that wait for one that has failed."""
    failed = {job.name for job in jobs if job.status not in (None, 0)}
    for job in list(waiting):
        if not failed.isdisjoint(job.after):
            waiting.remove(job)
            job.status = 1
            job.log.parent.mkdir(parents=True, exist_ok=True)
            job.log.write_text(f"not run, because {', '.join(failed.intersection(job.after))} failed\n")
            meter.end(job, 0.0)


def _start(job: Job, device: str, environment: dict[str, str]) -> _Running:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("wb") as log:
        process = subprocess.Popen(
            job.command(device),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
    return _Running(job, device, process)


def _stop(running: Sequence[_Running]) -> None:
    """End what still runs: after an interruption, which a run survives by its checkpoints."""
    for each in running:
        each.process.terminate()
    for each in running:
        each.process.wait()


def _read_share(log: Path) -> float:
    """Return the share of its steps that the run behind ``log`` has taken, as far as the log tells."""
    with suppress(OSError), log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _TAIL_BYTES))
        found = _STEPS.findall(file.read())
        if found:
            done, total = map(int, found[-1])
            return done / max(1, total)
    return 0.0


class _Meter:
    """The progress of all jobs: a bar on a terminal, lines elsewhere."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._ended = 0
        self._failed = 0
        self._started = time.perf_counter()
        self._printed_part = 0
        self._progress = create_progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[left]}", markup=False),
        )
        self._bar = self._progress.add_task("runs", total=total, left="")

    def __enter__(self) -> _Meter:
        self._progress.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._progress.stop()

    def end(self, job: Job, seconds: float) -> None:
        """Note, and say, that ``job`` has ended after so many seconds."""
        self._ended += 1
        if job.status == 0:
            outcome = f"done in {seconds / 60:.1f} minutes"
        else:
            self._failed += 1
            outcome = f"failed, see {job.log}"
        console.print(f"{job.name}: {outcome} ({self._ended} of {self._total} runs)")

    def show(self, begun: float) -> None:
        """Show how much is done if the jobs that run have done ``begun`` of one job's work in all."""
        done = self._ended + begun
        left = self._describe_time_left(done)
        self._progress.update(self._bar, completed=done, left=left)
        part = int(_LINES_OF_A_STUDY * done / max(1, self._total))
        if not is_progress_shown() and part > self._printed_part and self._ended < self._total:
            self._printed_part = part
            console.print(f"  {done / self._total:.0%} of all runs{left}")

    def _describe_time_left(self, done: float) -> str:
        if done <= 0:
            return ""
        seconds = (time.perf_counter() - self._started) / done * (self._total - done)
        hours, minutes = divmod(round(seconds / 60), 60)
        return f", about {hours}:{minutes:02d} hours left"
