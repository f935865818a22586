"""Processes that fill batches in shared memory, and stop when their parent does, however it ends.

A worker is a fresh interpreter that imports this module and nothing of the caller's: no fork of a process in which a
framework's threads run, no second import of the main script. It is tied to the parent by a socket. Only small messages
pass through it, few enough never to fill it; indices and pixels lie in the shared memory.
"""

from __future__ import annotations

import math
import mmap
import os
import pickle
import subprocess
import sys
import tempfile
import traceback
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ehm.data.samples import Samples
from ehm.errors import DataError, EhmError

__all__ = ["Workers", "main"]

_PIECE = 16  # images of a task: few enough to share a batch out evenly, enough for messages not to matter
_PIECES = 8  # of a batch for each worker at most: a batch of thousands has larger ones
_PATIENCE = 1  # seconds
_START = "import sys; sys.path[:] = {path!r}; from ehm.data.workers import main; main({socket}, {memory}, {parent})"

Plan = tuple[int, NDArray[np.int64]]
"""Epoch and indices (n,) of a batch."""
Result = tuple[NDArray[np.uint8], NDArray[np.int64], dict[str, str]]
"""Images (n, H, W, 3), the indices (n,) that were read, and broken files with their reasons."""


@dataclass(frozen=True)
class _Setup:
    samples: Samples
    slots: int
    rows: int

    @property
    def _shape(self) -> tuple[int, ...]:
        return (self.slots, self.rows, *self.samples.transform.shape)

    @property
    def bytes(self) -> int:
        return self.slots * self.rows * 8 + math.prod(self._shape)

    def open(self, file: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Indices (slots, rows) and images (slots, rows, H, W, 3) in the shared file."""
        memory = mmap.mmap(file, self.bytes)
        count = self.slots * self.rows
        indices = np.frombuffer(memory, np.int64, count).reshape(self.slots, self.rows)
        return indices, np.frombuffer(memory, np.uint8, offset=indices.nbytes).reshape(self._shape)


@dataclass(frozen=True)
class _Task:
    slot: int
    rows: slice
    epoch: int


class _Worker:
    def __init__(self, memory: int, setup: bytes) -> None:
        ours, theirs = Pipe()
        start = _START.format(path=sys.path, socket=theirs.fileno(), memory=memory, parent=os.getpid())
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, "-c", start],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), memory),
            env={**os.environ, **one_thread},
            start_new_session=True,  # Ctrl-C is for the parent, which then ends its workers
        )
        theirs.close()
        self.connection = ours
        self.setup = setup

    def send(self, task: _Task) -> None:
        """Hand over a task; the first call waits until the interpreter has started."""
        try:
            if self.setup:
                self.connection.send_bytes(self.setup)
                self.setup = b""
            self.connection.send(task)
        except OSError:
            raise self._died() from None

    def receive(self) -> dict[str, str]:
        try:
            reply: dict[str, str] | Exception = self.connection.recv()
        except (EOFError, OSError):
            raise self._died() from None
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _died(self) -> DataError:
        try:
            status = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        hint = ", most often for want of memory: fewer data.workers need less" if status == -9 else ""
        return DataError(f"a data worker {how}{hint}")


class Workers:
    """``count`` processes that fill batches of up to ``rows`` images ahead of the consumer.

    Memory is shared through a file without a name, which the system frees with its last user and to which the limit
    on /dev/shm that containers have does not apply.
    """

    def __init__(self, count: int, samples: Samples, rows: int) -> None:
        self._piece = max(min(_PIECE, -(-rows // count)), -(-rows // (count * _PIECES)))
        ahead = 1 + -(-2 * count * self._piece // rows)  # batches: every worker has a task, and another waiting
        setup = _Setup(samples, ahead, rows)
        try:
            message = pickle.dumps(setup)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise DataError(f"the source or the transform cannot be sent to data workers: {error}") from None
        with _nameless_file() as memory:
            memory.truncate(setup.bytes)
            self._indices, self._images = setup.open(memory.fileno())
            self._workers = [_Worker(memory.fileno(), message) for _ in range(count)]
        self._next = 0
        self.close = weakref.finalize(self, _end, self._workers)
        """End the processes; also called when this object, or the interpreter, goes."""

    def run(self, plans: Iterator[Plan]) -> Iterator[Result]:
        """The batch of each plan in order; its arrays are the caller's own."""
        pending: deque[tuple[int, int, list[_Worker]]] = deque()
        for slot, plan in zip(range(len(self._images)), plans, strict=False):
            pending.append(self._submit(slot, plan))
        while pending:
            slot, rows, workers = pending.popleft()
            broken: dict[str, str] = {}
            for worker in workers:  # a worker answers in the order of its tasks
                broken |= worker.receive()
            images, indices = self._images[slot, :rows].copy(), self._indices[slot, :rows].copy()
            for plan in islice(plans, 1):
                pending.append(self._submit(slot, plan))
            yield images, indices, broken

    def _submit(self, slot: int, plan: Plan) -> tuple[int, int, list[_Worker]]:
        epoch, indices = plan
        self._indices[slot, : len(indices)] = indices
        workers = []
        for start in range(0, len(indices), self._piece):
            worker = self._workers[self._next % len(self._workers)]
            self._next += 1
            worker.send(_Task(slot, slice(start, min(start + self._piece, len(indices))), epoch))
            workers.append(worker)
        return slot, len(indices), workers


def _nameless_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("ehm-data"), "r+b")
    return tempfile.TemporaryFile()


def _end(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.connection.close()
        worker.process.kill()
    for worker in workers:
        worker.process.wait()


def main(socket: int, memory: int, parent: int) -> None:
    """The life of a worker: its setup, then tasks, until the socket closes or the parent is gone."""
    connection = Connection(socket)
    try:
        setup = _next_message(connection, parent)
        if isinstance(setup, _Setup):
            indices, images = setup.open(memory)
        while True:
            task = _next_message(connection, parent)
            if isinstance(setup, _Setup):
                part = task.slot, task.rows
                connection.send(_fill(setup.samples, images[part], indices[part], task.epoch))
            else:
                connection.send(setup)
    except (EOFError, OSError):
        pass  # nobody is left to answer


def _next_message(connection: Connection, parent: int) -> Any:
    while not connection.poll(_PATIENCE):
        if os.getppid() != parent:  # another child of a parent that was killed may hold its end of the socket open
            raise EOFError
    message = connection.recv_bytes()
    try:
        return pickle.loads(message)
    except Exception as error:  # whatever the import of a caller's module raises
        return DataError(f"a data worker cannot load the source or the transform: {error}; define them in a module")


def _fill(
    samples: Samples, images: NDArray[np.uint8], indices: NDArray[np.int64], epoch: int
) -> dict[str, str] | Exception:
    try:
        return samples.fill(images, indices, epoch)
    except EhmError as error:
        return error
    except Exception:  # an error of the code: its traceback would be lost with this process
        return RuntimeError(f"a data worker failed\n{traceback.format_exc()}")
