"""The processors that each of several processes may use for its work on the host."""

from __future__ import annotations

from ehm.backends.base import Processes
from ehm.processors import count_shared_processors, list_host_processors

__all__ = ["count_own_processors"]


def count_own_processors(processes: Processes) -> int:
    """Return how many processors this process may use, if those of its machine share theirs; all ``processes`` call it.

    Processes that were bound to processors of their own (``numactl``, ``taskset``, ``torchrun --numa-binding``, the
    torch-npu setting ``CPU_AFFINITY_CONF=1``) keep all of these.
    """
    everyone = processes.gather_values(list_host_processors())
    return count_shared_processors(everyone, processes.rank)
