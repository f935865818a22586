"""Dynamic batching: requests of the same shape that wait at the same time run as one batch.

A model has one `Batcher`. While fewer than ``runs`` batches are under way, waiting requests run at once in a thread, as
many as fit into ``max_batch`` images; later ones gather until a run ends. With ``max_delay``, the first of a batch
waits that long for others before. No task outlives the last waiting request, so that a batcher which nobody refers to
any more vanishes with its model.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.deploy.serve.inference.metrics import ModelMetrics
from ehm.errors import RequestError

__all__ = ["Batcher", "Outputs", "Result"]

Images = NDArray[Any]  # (B, ...), prepared for the model
Outputs = Mapping[str, NDArray[np.float32]]  # by name, B rows each


@dataclass(frozen=True)
class Result:
    """The outputs of one request, and how many images ran in the largest batch that it was part of."""

    outputs: Outputs
    batch: int


@dataclass(eq=False)
class _Entry:
    """Images of one request, which may run with others of their shape: ``most`` together."""

    images: Images
    names: frozenset[str]
    arrived: float
    most: int
    future: asyncio.Future[Result] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def fits(self, other: _Entry) -> bool:
        """Return whether both can be stacked into one batch."""
        return self.images.shape[1:] == other.images.shape[1:] and self.images.dtype == other.images.dtype


class Batcher:
    """Runs ``run(images, names) -> outputs`` for many requests at once.

    ``run_beside``, if it is given, takes the place of ``run`` while other batches are under way or wait: it may use
    one core where ``run`` uses all of them.

    ``max_batch`` is in images, ``max_delay`` in seconds; ``queue`` is how many requests may wait, ``runs`` how many
    batches run at once.
    """

    def __init__(
        self,
        run: Callable[[Images, Sequence[str]], Outputs],
        *,
        max_batch: int,
        max_delay: float,
        queue: int,
        metrics: ModelMetrics,
        runs: int = 1,
        run_beside: Callable[[Images, Sequence[str]], Outputs] | None = None,
    ) -> None:
        self._run = run
        self._run_beside = run_beside or run
        self._max_batch = max_batch
        self._max_delay = max_delay
        self._queue = queue
        self._metrics = metrics
        self._runs = runs
        self._requests = 0
        self._waiting: deque[_Entry] = deque()
        self._arrival = asyncio.Event()
        self._runners: set[asyncio.Task[None]] = set()
        self._under_way = 0
        self._counting = Lock()

    async def infer(self, images: Images, names: Sequence[str], deadline: float, together: int | None = None) -> Result:
        """Return outputs ``names`` of ``images`` (B, ...), B at least 1, by ``deadline`` on the loop's clock.

        ``together`` is how many images of their shape may run at once, if that is fewer than ``max_batch``. Raises
        RequestError: 429 if the queue is full, 504 at the deadline, 500 if the model fails. A request that is cancelled
        leaves the queue.
        """
        if self._requests >= self._queue:
            raise RequestError(429, f"the queue of {self._queue} requests is full; try again in a second")
        loop = asyncio.get_running_loop()
        most = min(self._max_batch, together or self._max_batch)
        entries = []
        # more images than one batch holds run in several
        for start in range(0, len(images), most):
            entries.append(_Entry(images[start : start + most], frozenset(names), loop.time(), most))
        self._requests += 1
        self._waiting.extend(entries)
        self._metrics.change_waiting(len(images))
        self._arrival.set()
        for _ in entries:
            self._start_runner()
        futures = [entry.future for entry in entries]
        try:
            done, _ = await asyncio.wait(
                futures, timeout=max(0, deadline - loop.time()), return_when=asyncio.FIRST_EXCEPTION
            )
            for future in done:
                error = future.exception()
                if error is not None:
                    raise error
            if len(done) < len(futures):
                raise RequestError(504, "the deadline passed before the model had answered")
            results = [future.result() for future in futures]
        finally:
            self._requests -= 1
            for entry in entries:
                entry.future.cancel()  # changes nothing if it has its result
                if entry in self._waiting:
                    self._remove_waiting([entry])
        joined = {}
        for name in names:
            joined[name] = np.concatenate([result.outputs[name] for result in results])
        return Result(joined, max(result.batch for result in results))

    def run_now(self, images: Images, names: Sequence[str], loop: asyncio.AbstractEventLoop) -> Result | None:
        """Run ``images`` (B, ...) in the calling thread if nobody waits and a run is free; None if not.

        It spares a lone request the way to another thread. ``loop`` is the one that the others wait on. Raises
        RequestError (500) if the model fails.
        """
        if self._max_delay or not self._begin_run(waiting=False):
            return None
        try:
            started = loop.time()
            outputs = self._run_together([images], names)
            self._metrics.observe_batch(len(images), [0.0], loop.time() - started)
            return Result(outputs, len(images))
        finally:
            self._end_run()
            if self._waiting:
                loop.call_soon_threadsafe(self._start_runner)

    def _begin_run(self, waiting: bool) -> bool:
        """Count one more run if one is free, and if somebody waits, or nobody, as ``waiting`` says."""
        with self._counting:  # from the loop and from other threads
            free = self._under_way < self._runs and bool(self._waiting) == waiting
            self._under_way += free
            return free

    def _end_run(self) -> None:
        with self._counting:
            self._under_way -= 1

    def _start_runner(self) -> None:
        if self._begin_run(waiting=True):
            runner = asyncio.get_running_loop().create_task(self._run_batches())
            self._runners.add(runner)  # the loop itself would not keep it alive
            runner.add_done_callback(self._runners.discard)

    async def _run_batches(self) -> None:
        """Run batch after batch until nobody waits."""
        try:
            while batch := await self._collect_batch():
                await self._answer_batch(batch)
        finally:
            self._end_run()

    async def _collect_batch(self) -> list[_Entry]:
        """Return the next batch once it is full or its first entry has waited long enough; none if nobody waits."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, full = self._find_fitting()
            left = batch[0].arrived + self._max_delay - loop.time()
            if full or left <= 0:
                self._remove_waiting(batch)
                return batch
            self._arrival.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._arrival.wait(), left)
        return []

    def _find_fitting(self) -> tuple[list[_Entry], bool]:
        """Return the entries to run with the first one, in order of arrival, and whether no more could join them."""
        first = self._waiting[0]
        batch: list[_Entry] = []
        size = 0
        for entry in self._waiting:
            if not entry.fits(first):
                continue
            if size + len(entry.images) > first.most:
                return batch, True
            batch.append(entry)
            size += len(entry.images)
        return batch, size == first.most

    def _remove_waiting(self, batch: list[_Entry]) -> None:
        for entry in batch:
            self._waiting.remove(entry)
            self._metrics.change_waiting(-len(entry.images))

    async def _answer_batch(self, batch: list[_Entry]) -> None:
        """Run a batch in a thread, and give each entry its rows or the error."""
        loop = asyncio.get_running_loop()
        names: set[str] = set()
        size = 0
        waited = []
        started = loop.time()
        for entry in batch:
            names |= entry.names
            size += len(entry.images)
            waited.append(started - entry.arrived)
        try:
            outputs = await asyncio.to_thread(self._run_together, [entry.images for entry in batch], sorted(names))
        except RequestError as error:
            for entry in batch:
                if not entry.future.done():  # a client that has left
                    entry.future.set_exception(error)
            return
        self._metrics.observe_batch(size, waited, loop.time() - started)
        start = 0
        for entry in batch:
            stop = start + len(entry.images)
            if not entry.future.done():
                own_rows = {name: rows[start:stop] for name, rows in outputs.items()}
                entry.future.set_result(Result(own_rows, size))
            start = stop

    def _run_together(self, images: list[Images], names: Sequence[str]) -> Outputs:
        """Run several requests' images as one batch; raises RequestError (500) if the model fails."""
        # a guess from another thread than the loop's: a wrong one costs a moment and changes no result
        alone = self._under_way == 1 and not self._waiting
        run = self._run if alone else self._run_beside
        try:
            # one request needs no copy
            together = np.concatenate(images) if len(images) > 1 else images[0]
            outputs = run(together, names)
            for name, rows in outputs.items():
                if len(rows) != len(together):
                    raise ValueError(f"{name} has {len(rows)} rows for {len(together)} images")
        except Exception as error:  # whatever it was, it must reach those who wait, and only those
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RequestError(500, f"the model failed on this batch: {reason}") from error
        return outputs
