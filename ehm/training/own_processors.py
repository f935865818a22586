"""The processors that each of several processes may use for its work on the host."""

from __future__ import annotations

from ehm.backends.base import Processes
from ehm.processors import count_shared_processors, list_host_processors

__all__ = ["count_own_processors"]


def count_own_processors(processes: Processes) -> int:
    """Return this process's share of the processors of its machine, which ``processes`` divide evenly; all call this.

    Processes that are bound to processors of their own (by ``numactl``, ``taskset``, ``torchrun --numa-binding`` or the
    torch-npu setting ``CPU_AFFINITY_CONF=1``) do not divide these.
    """
    everyone = processes.gather_values(list_host_processors())
    return count_shared_processors(everyone, processes.rank)
