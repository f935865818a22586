"""Run jobs in processes side by side, one on each core or device, and show their common progress and the time left."""

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

_POLL_SECONDS = 0.5
"""Time between checks for jobs that have ended: short beside their minutes, and almost no work."""
_PROGRESS_LINES = 20
"""Lines about the progress, one for each 5 %, that are printed in place of a bar away from a terminal."""
_STEPS = re.compile(rb"^\w+ (\d+)/(\d+) ", re.MULTILINE)
"""A line about the progress of a run, which prints these away from a terminal: ``TITLE STEPS_DONE/ALL_STEPS ...``."""
_FIRST_STEP = re.compile(rb"continuing step-(\d+)")
"""A part of the line that a run prints at its beginning if it goes on from a checkpoint."""
_READ_BYTES = 4096
"""Bytes at the beginning and at the end of a log that are searched for such lines, which have a few hundred."""


@dataclass
class Job:
    """A command whose output goes to ``log``, and which starts after the jobs that ``after`` names.

    ``status`` is None until it has ended, and then its exit status; 1 if it was not run because one of those failed.
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


@dataclass(frozen=True)
class _Shares:
    """Shares of the steps of a run, in [0, 1]."""

    done: float = 0.0
    """The share that it has taken."""
    resumed: float = 0.0
    """The part of it that an earlier process took, which says nothing about the speed of this one."""


def run_jobs(jobs: Sequence[Job], devices: Sequence[str], environment: dict[str, str]) -> None:
    """Run all ``jobs`` and set their ``status``; each entry of ``devices`` runs one job at a time.

    A device that occurs several times in ``devices`` runs as many jobs at once. If a job fails, the jobs that wait for
    it are not run; the others are. An interruption ends all of them. ``environment`` is added to this process's own.
    """
    waiting = list(jobs)
    running: list[_Running] = []
    free = list(devices)
    meter = _Meter(len(jobs))
    with meter:
        try:
            while waiting or running:
                _give_up_dependents(waiting, jobs, meter)
                for job in _find_ready(waiting, jobs)[: len(free)]:
                    waiting.remove(job)
                    running.append(_start_process(job, free.pop(0), environment))
                time.sleep(_POLL_SECONDS)
                for each in list(running):
                    each.job.status = each.process.poll()
                    if each.job.status is not None:
                        running.remove(each)
                        free.append(each.device)
                        meter.count_end(each.job, time.perf_counter() - each.started)
                meter.show([_read_shares(each.job.log) for each in running])
        finally:
            _stop_processes(running)


def _find_ready(waiting: Sequence[Job], jobs: Sequence[Job]) -> list[Job]:
    """Return the ``waiting`` jobs whose predecessors have all succeeded, in their order."""
    unfinished = {job.name for job in jobs if job.status != 0}
    return [job for job in waiting if unfinished.isdisjoint(job.after)]


def _give_up_dependents(waiting: list[Job], jobs: Sequence[Job], meter: _Meter) -> None:
    """Remove from ``waiting`` the jobs that wait for a failed one, and mark them as failed.

    The jobs that wait for these in turn are removed in the next round.
    """
    failed = {job.name for job in jobs if job.status not in (None, 0)}
    for job in list(waiting):
        if not failed.isdisjoint(job.after):
            waiting.remove(job)
            job.status = 1
            job.log.parent.mkdir(parents=True, exist_ok=True)
            job.log.write_text(f"not run, because {', '.join(failed.intersection(job.after))} failed\n")
            meter.count_end(job, 0.0)


def _start_process(job: Job, device: str, environment: dict[str, str]) -> _Running:
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


def _stop_processes(running: Sequence[_Running]) -> None:
    """End the processes that still run after an interruption; their runs go on from their checkpoints later."""
    for each in running:
        each.process.terminate()
    for each in running:
        each.process.wait()


def _read_shares(log: Path) -> _Shares:
    """Return the shares of its steps that a run has taken by its ``log``: 0 if that does not say so (yet)."""
    with suppress(OSError), log.open("rb") as file:
        beginning = file.read(_READ_BYTES)
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _READ_BYTES))
        found = _STEPS.findall(file.read())
        if found:
            done, total = map(int, found[-1])
            first = _FIRST_STEP.search(beginning)
            resumed = int(first[1]) if first else 0
            return _Shares(done / max(1, total), resumed / max(1, total))
    return _Shares()


class _Meter:
    """The progress of all jobs: a bar on a terminal, lines elsewhere."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._ended = 0
        self._ended_resumed = 0.0
        self._failed = 0
        self._started = time.perf_counter()
        self._lines_printed = 0
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

    def count_end(self, job: Job, seconds: float) -> None:
        """Count ``job``, which has ended after so many seconds, and print how."""
        self._ended += 1
        self._ended_resumed += _read_shares(job.log).resumed
        if job.status == 0:
            outcome = f"done in {seconds / 60:.1f} minutes"
        else:
            self._failed += 1
            outcome = f"failed, see {job.log}"
        console.print(f"{job.name}: {outcome} ({self._ended} of {self._total} runs)")

    def show(self, running: Sequence[_Shares]) -> None:
        """Show the progress; ``running`` are the shares of the jobs that run."""
        done = self._ended + sum(shares.done for shares in running)
        resumed = self._ended_resumed + sum(shares.resumed for shares in running)
        left = self._describe_time_left(done, resumed)
        self._progress.update(self._bar, completed=done, left=left)
        lines_due = int(_PROGRESS_LINES * done / max(1, self._total))
        if not is_progress_shown() and lines_due > self._lines_printed and self._ended < self._total:
            self._lines_printed = lines_due
            console.print(f"  {done / self._total:.0%} of all runs{left}")

    def _describe_time_left(self, done: float, resumed: float) -> str:
        """Return the time that the remaining runs take at the speed so far; ``done`` includes what was ``resumed``."""
        done_since_start = done - resumed
        if done_since_start <= 0:
            return ""
        seconds = (time.perf_counter() - self._started) / done_since_start * (self._total - done)
        hours, minutes = divmod(round(seconds / 60), 60)
        return f", about {hours}:{minutes:02d} hours left"
