"""The share of the time in which a device waits for images and for masks, and advice if that is long.

An accelerator computes while the host continues. If the host waits for images while the device still has work, no time
is lost. If the host waits for masks, it may in fact wait for the device to finish the step before. So only waits during
which the device has nothing to do are counted. On a CPU every wait counts.
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
"""Steps at the beginning of a run whose waits are ignored, because workers start and kernels are compiled."""
_PERIOD_SECONDS = 60.0
"""Time over which shares are averaged before they may give advice."""
_HIERARCHICAL_MASKINGS = ("evolved", "shallow", "deep")
"""Maskings that build hierarchies."""
_GUIDE = " (docs/watch.md)"


@dataclass(frozen=True)
class WaitShares:
    """Shares of the time, in [0, 1], in which the device waited; ``masks`` is None for a loop without masks."""

    data: float
    masks: float | None


class WaitClock:
    """Measures the waits of a loop since its last restart.

    ``is_device_busy`` returns whether the device still has work, and ``now`` the time in seconds.
    """

    def __init__(self, is_device_busy: Callable[[], bool], now: Callable[[], float] = time.perf_counter) -> None:
        self._is_device_busy = is_device_busy
        self._now = now
        self.restart()

    def restart(self) -> None:
        """Forget all waits, and measure from now on."""
        self._start = self._now()
        self._data_seconds = 0.0
        self._mask_seconds = 0.0
        self._timed_steps = 0
        self._masked_steps = 0

    @property
    def seconds(self) -> float:
        """Seconds since the clock was restarted."""
        return self._now() - self._start

    def time_batches(self, batches: Iterator[T]) -> Iterator[T]:
        """Yield from ``batches``, and add up the time for which the device waits for them."""
        while True:
            start = self._now()
            try:
                batch = next(batches)
            except StopIteration:
                return
            # if the device still computes the last step, it has not waited for this batch
            if not self._is_device_busy():
                self._data_seconds += self._now() - start
            yield batch

    def time_masks(self, pieces: Iterator[T]) -> Iterator[T]:
        """Yield the ``pieces`` of the masks of a step, and add up the time for which the device waits for them."""
        self._masked_steps += 1
        # not timed while the device still computes the step before: the first piece would wait for that too
        is_timed = not self._is_device_busy()
        if is_timed:
            self._timed_steps += 1
        is_first = True
        while True:
            is_idle = is_first or not self._is_device_busy()
            start = self._now()
            piece = next(pieces, None)
            seconds = self._now() - start
            # a device that is busy before and after, for example with the first part of the step, has not waited
            if is_timed and (is_idle or not self._is_device_busy()):
                self._mask_seconds += seconds
            if piece is None:
                return
            yield piece
            is_first = False

    def read_shares(self) -> WaitShares:
        """Return the shares of the waits in the time since the last restart."""
        seconds = max(self.seconds, 1e-9)
        mask_share = None
        if self._masked_steps:
            # The steps that were not timed are assumed to wait as long as the others. At least one step is timed: the
            # first one after a line of the log, because reading the losses for the line leaves the device idle.
            mask_seconds = self._mask_seconds / max(1, self._timed_steps) * self._masked_steps
            mask_share = min(1.0, mask_seconds / seconds)
        return WaitShares(min(1.0, self._data_seconds / seconds), mask_share)


class WaitAdvisor:
    """Prints advice if the device waits long for images or for masks, each at most once in a run.

    ``processors`` is the number of processors that this process may use.
    """

    def __init__(self, config: Config, processors: int) -> None:
        self._config = config
        self._processors = processors
        self._steps = 0
        self._advised: set[str] = set()
        self._restart()

    def add_line(self, steps: int, seconds: float, shares: WaitShares) -> None:
        """Add the ``shares`` of a line of the log, whose ``steps`` took so many ``seconds``; print advice if due."""
        steps_before = self._steps
        self._steps += steps
        if steps_before < _FIRST_STEPS:
            return
        self._seconds += seconds
        self._data_seconds += shares.data * seconds
        self._mask_seconds += (shares.masks or 0.0) * seconds
        if self._seconds < _PERIOD_SECONDS:
            return
        data = self._data_seconds / self._seconds
        masks = self._mask_seconds / self._seconds
        if data > LONG_WAITS["data_wait"]:
            self._print_once("data", f"The device waits for images {data:.0%} of the time: {self._advise_on_data()}.")
        if masks > LONG_WAITS["masks_wait"] and isinstance(self._config, TrainConfig):
            advice = _advise_on_masks(self._config)
            self._print_once("masks", f"The device waits for masks {masks:.0%} of the time: {advice}.")
        self._restart()

    def _restart(self) -> None:
        self._seconds = 0.0
        self._data_seconds = 0.0
        self._mask_seconds = 0.0

    def _print_once(self, subject: str, sentence: str) -> None:
        if subject not in self._advised:
            self._advised.add(subject)
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
    """Return settings that make the masks of ``config`` cheaper, in words."""
    remedies = []
    # not without balancing: trees are then chains, which take so many rounds on a device that it would wait longer
    builds_on_host = config.masking in _HIERARCHICAL_MASKINGS and config.mask.build != "device"
    if builds_on_host and config.mask.balance == "sinkhorn":
        remedies.append("on an accelerator mask.build=device builds the trees there, which a resumed run may change")
    if config.mask.views == 1:
        remedies.append("in a new run mask.views=4 makes four masks of each pass over an image")
    if config.masking in (*_HIERARCHICAL_MASKINGS, "epm") and config.mask.blocks > 1:
        remedies.append(f"fewer mask.blocks than {config.mask.blocks} make that pass shorter")
    return "; ".join(remedies) + _GUIDE
