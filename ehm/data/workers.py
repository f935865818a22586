"""Processes that fill batches in shared memory, and stop when their parent does, however it ends.

A worker is a fresh interpreter that imports this module and nothing of the caller's: no fork of a process in which a
framework's threads run, no second import of the main script. It is tied to the parent by a socket. Tasks are small and
sent well ahead; pixels never pass through the socket, they are written where the parent reads them.
"""

from __future__ import annotations

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

from ehm.data.samples import Filled, Samples
from ehm.errors import DataError, EhmError

__all__ = ["Workers", "main"]

_PIECE = 16  # images of a task: small enough to share a batch out evenly, large enough for messages not to matter
_PATIENCE = 1  # seconds
_START = "import sys; sys.path[:] = {path!r}; from ehm.data.workers import main; main({socket}, {memory}, {parent})"

Plan = tuple[int, NDArray[np.int64]]
Result = tuple[NDArray[np.uint8], Filled]


@dataclass(frozen=True)
class _Setup:
    samples: Samples
    shape: tuple[int, int, int, int, int]  # (slots, rows, H, W, 3)


@dataclass(frozen=True)
class _Task:
    slot: int
    start: int
    epoch: int
    indices: NDArray[np.int64]


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

    def receive(self) -> Filled:
        try:
            reply = self.connection.recv()
        except (EOFError, OSError):
            raise self._died() from None
        if isinstance(reply, Exception):
            raise reply
        assert isinstance(reply, Filled)
        return reply

    def _died(self) -> DataError:
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
        piece = min(_PIECE, -(-rows // count))
        ahead = 1 + -(-2 * count * piece // rows)  # batches: enough for every worker to have a task and another waiting
        self._shape = (ahead, rows, *samples.transform.image_size, 3)
        self._piece = piece
        size = int(np.prod(self._shape))
        try:
            setup = pickle.dumps(_Setup(samples, self._shape))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise DataError(f"the source or the transform cannot be sent to data workers: {error}") from None
        with _nameless_file() as memory:
            memory.truncate(size)
            self._slots = np.frombuffer(mmap.mmap(memory.fileno(), size), np.uint8).reshape(self._shape)
            self._workers = [_Worker(memory.fileno(), setup) for _ in range(count)]
        self._next = 0
        self.close = weakref.finalize(self, _end, self._workers)
        """End the processes; also called when this object, or the interpreter, goes."""

    def run(self, plans: Iterator[Plan]) -> Iterator[Result]:
        """Images (n, H, W, 3), the caller's own, of each plan in order."""
        pending: deque[tuple[int, int, list[_Worker]]] = deque()
        slots = iter(range(self._shape[0]))
        for slot, plan in zip(slots, plans, strict=False):
            pending.append(self._submit(slot, plan))
        while pending:
            slot, rows, workers = pending.popleft()
            filled = Filled([], {})
            for worker in workers:  # a worker answers in the order of its tasks
                piece = worker.receive()
                filled.indices += piece.indices
                filled.broken |= piece.broken
            images = self._slots[slot, :rows].copy()
            for plan in islice(plans, 1):
                pending.append(self._submit(slot, plan))
            yield images, filled

    def _submit(self, slot: int, plan: Plan) -> tuple[int, int, list[_Worker]]:
        epoch, indices = plan
        workers = []
        for start in range(0, len(indices), self._piece):
            worker = self._workers[self._next % len(self._workers)]
            self._next += 1
            worker.send(_Task(slot, start, epoch, indices[start : start + self._piece]))
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
            slots = np.frombuffer(mmap.mmap(memory, int(np.prod(setup.shape))), np.uint8).reshape(setup.shape)
            while True:
                connection.send(_fill(setup.samples, slots, _next_message(connection, parent)))
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


def _fill(samples: Samples, slots: NDArray[np.uint8], task: _Task) -> Filled | Exception:
    try:
        rows = slots[task.slot, task.start : task.start + len(task.indices)]
        return samples.fill(rows, task.epoch, task.indices)
    except EhmError as error:
        return error
    except Exception:  # an error of the code: its traceback would be lost with this process
        return RuntimeError(f"a data worker failed\n{traceback.format_exc()}")
