"""Processes that train one model together, as msrun starts them: parallel data, collectives of MindSpore's target.

msrun says who is who by environment variables (MS_ROLE, MS_WORKER_NUM, DEVICE_ID ...); HCCL serves Ascend, MindSpore's
own collectives the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mindspore import Tensor, communication, ops
from mindspore.mint import distributed

from ehm.backends.base import ALONE, Processes
from ehm.backends.mindspore.engine.devices import Target, use_target
from ehm.errors import BackendError

__all__ = ["build_mean", "join_processes"]


@dataclass(frozen=True)
class MindsporeProcesses:
    """Implements :class:`ehm.backends.base.Processes` on MindSpore's world group."""

    rank: int
    size: int
    local_size: int

    def gather_values(self, value: Any) -> list[Any]:
        """See :meth:`ehm.backends.base.Processes.gather_values`."""
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values


def build_mean(processes: Processes) -> Callable[..., tuple[Tensor, ...]]:
    """Return a function that averages each of some tensors over ``processes``."""
    size = processes.size
    several = size > 1
    if several:
        total_of_all = ops.AllReduce()

    def average(*values: Tensor) -> tuple[Tensor, ...]:
        averaged = []
        for value in values:
            averaged.append(total_of_all(value) / size if several else value * 1.0)
        return tuple(averaged)

    return average


def join_processes(target: Target) -> Processes:
    """Take this process's own device of ``target``'s kind, and return the processes that msrun has started.

    Without msrun, take ``target`` as it is; this process is alone then. msrun's scheduler never returns from here: it
    ends with the others.
    """
    if os.environ.get("MS_WORKER_NUM", "1") == "1" or "MS_ROLE" not in os.environ:
        use_target(target)
        return ALONE
    if target.index is not None:
        raise BackendError(
            f"--device mindspore:{target.kind}:{target.index}: msrun gives every process a device of its own; use "
            f"--device mindspore:{target.kind}"
        )
    own = os.environ.get("DEVICE_ID")  # the scheduler has none
    if target.kind == "ascend" and own:
        target = Target(target.kind, int(own))
    use_target(target)
    communication.init()
    return MindsporeProcesses(
        communication.get_rank(), communication.get_group_size(), communication.get_local_rank_size()
    )
