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

from ehm.data.sampler import BatchPlan
from ehm.data.samples import LoadedBatch, SampleReader
from ehm.errors import DataError, EhmError
from ehm.processors import spread_children

__all__ = ["WorkerPool", "main"]

_TASK_ROWS = 16
"""Images of a task, at most: few enough to share a batch out evenly, enough for messages not to matter."""
_TASKS_PER_WORKER = 8
"""Tasks that a batch gives to each worker, at most: the tasks of a batch of thousands are larger."""
_POLL_SECONDS = 1
"""Seconds between two looks of an idle worker whether its parent is still there."""
_PATIENCE_SECONDS = 5
"""Seconds in which a worker whose socket is closed has to end by itself."""
_INDEX_BYTES = 8
"""Bytes of an image's index."""
_BOOTSTRAP = "import sys; sys.path[:] = {path!r}; from ehm.data.workers import main; main({socket}, {memory}, {parent})"
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True)
class _Setup:
    """The setup of every worker: how to read samples, and the layout of the shared memory.

    The memory has ``slots``, each for a batch of up to ``rows`` images.
    """

    reader: SampleReader
    slots: int
    rows: int

    @property
    def image_shape(self) -> tuple[int, ...]:
        return (self.slots, self.rows, *self.reader.sample_shape)

    @property
    def byte_count(self) -> int:
        return self.slots * self.rows * _INDEX_BYTES + math.prod(self.image_shape) * self.reader.sample_dtype.itemsize

    def map_memory(self, file: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Return the indices (slots, rows) and the images (slots, rows, H, W, channels) in the shared file."""
        memory = mmap.mmap(file, self.byte_count)
        indices = np.frombuffer(memory, np.int64, self.slots * self.rows).reshape(self.slots, self.rows)
        images = np.frombuffer(memory, self.reader.sample_dtype, offset=indices.nbytes).reshape(self.image_shape)
        return indices, images


@dataclass(frozen=True)
class _Task:
    """Rows of a slot to fill with images of ``epoch``."""

    slot: int
    rows: slice
    epoch: int


class _Worker:
    """The parent's side of a worker process."""

    def __init__(self, memory: int, setup: bytes) -> None:
        self.connection, worker_end = Pipe()
        code = _BOOTSTRAP.format(path=sys.path, socket=worker_end.fileno(), memory=memory, parent=os.getpid())
        with spread_children():
            self.process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                pass_fds=(worker_end.fileno(), memory),
                env={**os.environ, **_ONE_THREAD},  # there are as many workers as processors are to be used
                start_new_session=True,  # Ctrl-C is for the parent, which then ends its workers
            )
        worker_end.close()
        self._setup = setup

    def send_task(self, task: _Task) -> None:
        """Hand over a task; the first call waits until the interpreter has started."""
        try:
            if self._setup:
                self.connection.send_bytes(self._setup)
                self._setup = b""
            self.connection.send(task)
        except OSError:
            raise self._explain_death() from None

    def receive_unreadable(self) -> dict[str, str]:
        """Wait until the oldest task is done, and return the files that it could not read."""
        try:
            reply: dict[str, str] | Exception = self.connection.recv()
        except (EOFError, OSError):
            raise self._explain_death() from None
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _explain_death(self) -> DataError:
        try:
            status = self.process.wait(timeout=_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        # the kernel kills with signal 9 if memory runs out
        hint = ", most often because memory ran out: fewer data.workers need less" if status == -9 else ""
        return DataError(f"a data worker {how}{hint}")


@dataclass(frozen=True)
class _PendingBatch:
    """A batch that is being filled: its slot, its number of rows, and the worker of each of its tasks, in order."""

    slot: int
    rows: int
    workers: list[_Worker]


class WorkerPool:
    """``count`` processes that fill batches of up to ``rows`` images ahead of the consumer.

    Memory is shared through a file without a name, which the system frees with its last user and to which the limit
    on /dev/shm that containers have does not apply.
    """

    def __init__(self, count: int, reader: SampleReader, rows: int) -> None:
        even_share = math.ceil(rows / count)
        least_rows = math.ceil(rows / (count * _TASKS_PER_WORKER))
        self._task_rows = max(min(_TASK_ROWS, even_share), least_rows)
        # enough batches for every worker to have a task and another one waiting, and one that is being consumed
        batches = 1 + math.ceil(2 * count * self._task_rows / rows)
        setup = _Setup(reader, batches, rows)
        try:
            message = pickle.dumps(setup)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise DataError(f"the source or the transform cannot be sent to data workers: {error}") from None
        with _open_nameless_file() as memory:
            memory.truncate(setup.byte_count)
            self._indices, self._images = setup.map_memory(memory.fileno())
            self._workers = [_Worker(memory.fileno(), message) for _ in range(count)]
        self._tasks_sent = 0
        self.close = weakref.finalize(self, _end_workers, self._workers)
        """End the processes; also called when this object, or the interpreter, goes."""

    def load_batches(self, plans: Iterator[BatchPlan]) -> Iterator[LoadedBatch]:
        """Yield the batch of each plan, in order; its arrays are the caller's own."""
        pending: deque[_PendingBatch] = deque()
        slots = len(self._images)
        for slot, plan in enumerate(islice(plans, slots)):
            pending.append(self._submit(slot, plan))
        while pending:
            batch = pending.popleft()
            unreadable: dict[str, str] = {}
            for worker in batch.workers:  # a worker answers in the order of its tasks
                unreadable |= worker.receive_unreadable()
            # copied, so that the slot is free for the next batch while the consumer uses this one
            images = self._images[batch.slot, : batch.rows].copy()
            indices = self._indices[batch.slot, : batch.rows].copy()
            for plan in islice(plans, 1):
                pending.append(self._submit(batch.slot, plan))
            yield LoadedBatch(images, indices, unreadable)

    def _submit(self, slot: int, plan: BatchPlan) -> _PendingBatch:
        """Share a batch out to the workers, in turn."""
        rows = len(plan.indices)
        self._indices[slot, :rows] = plan.indices
        workers = []
        for start in range(0, rows, self._task_rows):
            worker = self._workers[self._tasks_sent % len(self._workers)]
            self._tasks_sent += 1
            worker.send_task(_Task(slot, slice(start, min(start + self._task_rows, rows)), plan.epoch))
            workers.append(worker)
        return _PendingBatch(slot, rows, workers)


def _open_nameless_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("ehm-data"), "r+b")
    return tempfile.TemporaryFile()


def _end_workers(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.connection.close()
        worker.process.kill()
    for worker in workers:
        worker.process.wait()


def main(socket: int, memory: int, parent: int) -> None:
    """Live as a worker: receive the setup, then tasks, until the socket closes or the parent is gone."""
    connection = Connection(socket)
    try:
        setup = _receive_message(connection, parent)
        if isinstance(setup, _Setup):
            indices, images = setup.map_memory(memory)
        tasks: deque[_Task] = deque()
        while True:
            # what has come meanwhile too, so that a store is asked for the next images while these are decoded
            while not tasks or connection.poll(0):
                tasks.append(_receive_message(connection, parent))
                if isinstance(setup, _Setup):
                    setup.reader.fetch_ahead(indices[tasks[-1].slot, tasks[-1].rows].tolist())
            task = tasks.popleft()
            if isinstance(setup, _Setup):
                rows = task.slot, task.rows
                connection.send(_fill(setup.reader, images[rows], indices[rows], task.epoch))
            else:  # an error: the setup could not be unpickled, which answers every task
                connection.send(setup)
    except (EOFError, OSError):
        pass  # nobody is left to answer


def _receive_message(connection: Connection, parent: int) -> Any:
    while not connection.poll(_POLL_SECONDS):
        if os.getppid() != parent:  # another child of a parent that was killed may hold its end of the socket open
            raise EOFError
    message = connection.recv_bytes()
    try:
        return pickle.loads(message)
    except Exception as error:  # whatever the import of a caller's module raises
        return DataError(f"a data worker cannot load the source or the transform: {error}; define them in a module")


def _fill(
    reader: SampleReader, images: NDArray[np.uint8], indices: NDArray[np.int64], epoch: int
) -> dict[str, str] | Exception:
    try:
        return reader.fill_rows(images, indices, epoch)
    except EhmError as error:
        return error
    except Exception:  # an error of the code: its traceback would be lost with this process
        return RuntimeError(f"a data worker failed\n{traceback.format_exc()}")
