"""The time in which a loop waits for images and for masks, and what to change if that is long.

An accelerator works while the host goes on. That the host waits for the next images costs nothing then, as long as the
device still has work; and the host that waits for masks waits for the end of the step before as well. So a wait counts
only if it ends, or begins, with a device that has nothing to do. On a CPU every wait counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from ehm.config import TaskConfig, TokenizerConfig, TrainConfig
from ehm.console import console
from ehm.report.findings import LONG_WAITS

__all__ = ["WaitAdvisor", "WaitClock", "WaitShares"]

T = TypeVar("T")
Config = TrainConfig | TaskConfig | TokenizerConfig

_FIRST_STEPS = 20
"""Steps whose waits say nothing yet: workers start and kernels are compiled."""
_STRETCH_SECONDS = 60.0
"""Time over which shares are averaged before anything is said about them."""
_TREES = ("evolved", "shallow", "deep")
"""Maskings that build trees."""
_GUIDE = " (docs/watch.md)"


@dataclass(frozen=True)
class WaitShares:
    """Shares of the time, each from 0 to 1, in which the device waited; ``masks`` is None for a loop without masks."""

    data: float
    masks: float | None


class WaitClock:
    """A clock of the waits of a loop since it was last restarted.

    ``is_device_busy`` says whether the device still has work, and ``now`` is the time in seconds.
    """

    def __init__(self, is_device_busy: Callable[[], bool], now: Callable[[], float] = time.perf_counter) -> None:
        self._is_device_busy = is_device_busy
        self._now = now
        self.restart()

    def restart(self) -> None:
        """Forget the waits up to now."""
        self._start = self._now()
        self._data_seconds = 0.0
        self._mask_seconds = 0.0
        self._timed_masks = 0
        self._masks = 0

    @property
    def seconds(self) -> float:
        """Seconds since the clock was restarted."""
        return self._now() - self._start

    def time_batches(self, batches: Iterator[T]) -> Iterator[T]:
        """Yield from ``batches``, and count the time that each of them takes to come."""
        while True:
            start = self._now()
            try:
                batch = next(batches)
            except StopIteration:
                return
            # a device that still works on the last step has not waited for this batch
            if not self._is_device_busy():
                self._data_seconds += self._now() - start
            yield batch

    def time_masks(self, pieces: Iterator[T]) -> Iterator[T]:
        """Yield the ``pieces`` of the masks of a step, and count the time that they take to come."""
        self._masks += 1
        # behind a step that the device still works on, the first piece would wait for that step too
        is_timed = not self._is_device_busy()
        if is_timed:
            self._timed_masks += 1
        is_first = True
        while True:
            is_idle = is_first or not self._is_device_busy()
            start = self._now()
            piece = next(pieces, None)
            seconds = self._now() - start
            # a device that has work throughout, such as the first part of the step, does not wait
            if is_timed and (is_idle or not self._is_device_busy()):
                self._mask_seconds += seconds
            if piece is None:
                return
            yield piece
            is_first = False

    def read_shares(self) -> WaitShares:
        """Return the shares of the waits in the time since the clock was restarted."""
        seconds = max(self.seconds, 1e-9)
        masks = None
        if self._masks:
            # those that were not timed take as long: at least the first step after a line begins on an idle device,
            # because reading the losses for the line waits for all that it was given
            masks = self._mask_seconds / max(1, self._timed_masks) * self._masks
        data_share = min(1.0, self._data_seconds / seconds)
        return WaitShares(data_share, None if masks is None else min(1.0, masks / seconds))


class WaitAdvisor:
    """Says in one sentence, once in a run, that the device waits for images, and in another that it does for masks.

    ``processors`` is the number of processors that this process may use.
    """

    def __init__(self, config: Config, processors: int) -> None:
        self._config = config
        self._processors = processors
        self._steps = 0
        self._said: set[str] = set()
        self._restart()

    def add_line(self, steps: int, seconds: float, shares: WaitShares) -> None:
        """Take note of the ``shares`` of the latest ``steps``, which took so many ``seconds``, and say what is due."""
        began = self._steps
        self._steps += steps
        if began < _FIRST_STEPS:
            return
        self._seconds += seconds
        self._data_seconds += shares.data * seconds
        self._mask_seconds += (shares.masks or 0.0) * seconds
        if self._seconds < _STRETCH_SECONDS:
            return
        data = self._data_seconds / self._seconds
        masks = self._mask_seconds / self._seconds
        if data > LONG_WAITS["data_wait"]:
            self._say_once("data", f"The device waits for images {data:.0%} of the time: {self._advise_on_data()}.")
        if masks > LONG_WAITS["masks_wait"] and isinstance(self._config, TrainConfig):
            advice = _advise_on_masks(self._config)
            self._say_once("masks", f"The device waits for masks {masks:.0%} of the time: {advice}.")
        self._restart()

    def _restart(self) -> None:
        self._seconds = 0.0
        self._data_seconds = 0.0
        self._mask_seconds = 0.0

    def _say_once(self, subject: str, sentence: str) -> None:
        if subject not in self._said:
            self._said.add(subject)
            console.print(sentence)

    def _advise_on_data(self) -> str:
        workers = self._config.data.workers
        if workers < self._processors:
            remedy = (
                f"data.workers={self._processors} lets every processor read (now {workers}), and it may be changed "
                "when the run is resumed"
            )
        else:
            remedy = f"the {workers} data.workers already take all {self._processors} processors"
        return (
            f"{remedy}; images on a local disk that are reduced once to little more than the size that is trained on "
            f"take less time to read and decode{_GUIDE}"
        )


def _advise_on_masks(config: TrainConfig) -> str:
    """Return what makes the masks of ``config`` cheaper."""
    remedies = []
    # without balancing trees are chains, which take so many rounds on a device that it would wait longer
    if config.masking in _TREES and config.mask.build != "device" and config.mask.balance == "sinkhorn":
        remedies.append("on an accelerator mask.build=device builds the trees there, which a resumed run may change")
    if config.mask.views == 1:
        remedies.append("in a new run mask.views=4 makes four masks of each pass over an image")
    if config.masking in (*_TREES, "epm") and config.mask.blocks > 1:
        remedies.append(f"fewer mask.blocks than {config.mask.blocks} make that pass shorter")
    return "; ".join(remedies) + _GUIDE
