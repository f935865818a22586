"""The processors that this process may use, and the way that threads on them wait for each other.

OpenMP's threads meet at the end of every operator. The first one there either spins, which keeps its core busy for
nothing, or sleeps until the last one comes. torch, MindSpore and scikit-learn bring GNU's OpenMP library, which spins
for some milliseconds unless told otherwise. If anything else runs on the same cores (data workers, another program),
the thread that is waited for is often the one that has no core, because the others spin: training becomes several times
slower. `benchmarks/busy_machine.py` measures it, and docs/cost.md has the figures.

The libraries read their environment when they are loaded, so `prepare_threads` has to be called before a framework is
imported: the command line does so for every command, and `ehm.backends` does so for the Python functions. Processes
that these start (data workers) inherit it. A program that has imported torch before it calls ehm keeps what it has:
the library offers no way to change it later.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["count_available_processors", "count_physical_cores", "prepare_threads"]

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
"""The control groups of this process, a line each: number, controllers, path."""
_TOPOLOGY = Path("/sys/devices/system/cpu")

WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""Sleep instead of spinning: the name that all OpenMP libraries know, and the one that Intel's and LLVM's prefer."""

_ON_WAITING = (*WAITING, "GOMP_SPINCOUNT", "KMP_LIBRARY")
"""If one of these is set, somebody has decided how threads wait."""


def prepare_threads() -> None:
    """Choose how OpenMP's threads wait and how many there are, for a framework that is imported after this.

    Nothing that is set in the environment is changed: if one variable says how threads wait, none is set. The number
    of threads is the library's own choice, one a core, unless the process's control group allows less processor time
    than that; no library looks there.
    """
    if not any(name in os.environ for name in _ON_WAITING):
        os.environ.update(WAITING)
    # the libraries count the processors that this process may run on, and nothing else
    if count_available_processors() < len(_read_affinity()):
        os.environ.setdefault("OMP_NUM_THREADS", str(count_available_processors()))


def count_available_processors() -> int:
    """Return how many processors this process may use: those it may run on, or fewer if its control group says so.

    A share of a processor counts as a whole one.
    """
    allowed = len(_read_affinity())
    quota = _read_quota()
    if quota is None:
        return allowed
    return max(1, min(allowed, math.ceil(quota)))


def count_physical_cores() -> int:
    """Return how many cores this process may use; two processors that share a core (hyper-threading) count once."""
    cores = set()
    for processor in _read_affinity():
        # every processor of a core names the same siblings
        siblings = _TOPOLOGY / f"cpu{processor}" / "topology" / "thread_siblings_list"
        try:
            cores.add(siblings.read_text())
        except OSError:  # not Linux, or a container without /sys
            return count_available_processors()
    return min(len(cores), count_available_processors())


def _read_affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))  # macOS and Windows do not say


def _read_quota() -> float | None:
    """Return how many processors the control groups of this process allow, None if they do not limit it.

    The kernel's documentation calls it "CPU bandwidth": cpu.max in version 2 (``QUOTA PERIOD``), cpu.cfs_quota_us and
    cpu.cfs_period_us in version 1. A group is bound by the limits of those above it, too.
    """
    try:
        lines = _OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2, which has one hierarchy for all
            root = _CGROUPS
        elif "cpu" in controllers.split(","):
            root = _CGROUPS / controllers
        else:
            continue
        # in a container the path may be the host's, while the container's own group is mounted at the root
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            quota = _read_group_quota(folder)
            if quota is not None:
                quotas.append(quota)
    return min(quotas, default=None)


def _read_group_quota(group: Path) -> float | None:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
        if quota in ("max", "-1"):  # no limit, in the words of versions 2 and 1
            return None
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
