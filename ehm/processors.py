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

A vendor's plug-in may pin the thread that opens the device to a single processor (torch-npu does, if CPU_AFFINITY_CONF
is 2). Threads and processes that this thread starts would inherit that, and all run on the one processor. Therefore
`keep_processors` notes what the process had before, and whoever starts a thread or a process for work on the host gives
it back: `spread_thread` in the new thread, `spread_children` around the start of a process.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = [
    "HostProcessors",
    "count_available_processors",
    "count_physical_cores",
    "count_shared_processors",
    "keep_processors",
    "list_host_processors",
    "prepare_threads",
    "spread_children",
    "spread_thread",
]

HostProcessors = tuple[str, list[int]]
"""The name of a machine, and the processors on it that a process may run on."""

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
"""The control groups of this process, a line each: number, controllers, path."""
_TOPOLOGY = Path("/sys/devices/system/cpu")

WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""Sleep instead of spinning: the name that all OpenMP libraries know, and the one that Intel's and LLVM's prefer."""

_ON_WAITING = (*WAITING, "GOMP_SPINCOUNT", "KMP_LIBRARY")
"""If one of these is set, somebody has decided how threads wait."""

_pinned_to: set[int] = set()
"""The one processor that a plug-in has pinned a thread to, and with it all threads that this one starts."""
_kept: set[int] = set()
"""The processors of this process before that."""


def prepare_threads() -> None:
    """Choose how OpenMP's threads wait and how many there are, for a framework that is imported after this.

    Nothing that is set in the environment is changed: if one variable says how threads wait, none is set. The number
    of threads is the library's own choice, one a core, unless the process's control group allows less processor time
    than that; no library looks there.
    """
    if not any(name in os.environ for name in _ON_WAITING):
        os.environ.update(WAITING)
    # the libraries count the processors that this process may run on, and nothing else
    if count_available_processors() < len(_list_processors()):
        os.environ.setdefault("OMP_NUM_THREADS", str(count_available_processors()))


def count_available_processors() -> int:
    """Return how many processors this process may use: those it may run on, or fewer if its control group says so.

    A share of a processor counts as a whole one.
    """
    allowed = len(_list_processors())
    quota = _read_quota()
    if quota is None:
        return allowed
    return max(1, min(allowed, math.ceil(quota)))


def count_physical_cores() -> int:
    """Return how many cores this process may use; two processors that share a core (hyper-threading) count once."""
    cores = set()
    for processor in _list_processors():
        # every processor of a core names the same siblings
        siblings = _TOPOLOGY / f"cpu{processor}" / "topology" / "thread_siblings_list"
        try:
            cores.add(siblings.read_text())
        except OSError:  # not Linux, or a container without /sys
            return count_available_processors()
    return min(len(cores), count_available_processors())


def list_host_processors() -> HostProcessors:
    """Return this machine's name and the processors that this process may run on, to be shown to other processes."""
    return platform.node(), sorted(_list_processors())


def count_shared_processors(everyone: Sequence[HostProcessors], rank: int) -> int:
    """Return how many processors are left to process ``rank`` if all that may run on the same ones share them evenly.

    ``everyone`` has the :func:`list_host_processors` of each process. Those of another machine share nothing, nor do
    processes of which each was given processors of its own. A process has at least one.
    """
    host, own = everyone[rank]
    neighbours = [set(processors) for name, processors in everyone if name == host]
    share = 0.0
    for processor in own:
        share += 1 / sum(processor in processors for processors in neighbours)
    # a control group limits all of its processes together
    quota = count_available_processors() / len(neighbours) if _read_quota() is not None else math.inf
    # rounded, because three thirds of a processor are not quite one
    return max(1, math.floor(round(min(share, quota), 6)))


@contextmanager
def keep_processors() -> Iterator[None]:
    """Keep the processors of this process while a plug-in opens a device in the block, if it pins the thread to one.

    If it leaves the thread several, these are the processors that the process was given, and nothing has to be undone.
    """
    global _kept, _pinned_to
    before = _list_processors()
    yield
    after = _read_affinity()
    if len(after) == 1 and len(before) > 1:
        _pinned_to = after
        _kept = before


def spread_thread() -> None:
    """Let this thread run on all processors of the process, if it was started by a thread that is pinned to one."""
    if _kept and _read_affinity() == _pinned_to:
        _set_affinity(_kept)


@contextmanager
def spread_children() -> Iterator[None]:
    """Let processes that this thread starts in the block run on all processors, if it is pinned to one."""
    pinned = _read_affinity()
    spread_thread()
    try:
        yield
    finally:
        if _read_affinity() != pinned:
            _set_affinity(pinned)


def _list_processors() -> set[int]:
    """Return the processors that this process may run on, also if this thread is pinned to one of them."""
    affinity = _read_affinity()
    return _kept if _kept and affinity == _pinned_to else affinity


def _set_affinity(processors: set[int]) -> None:
    # they may have been taken from the process since, and to stay on one is no reason to fail
    with suppress(OSError):
        os.sched_setaffinity(0, processors)


def _read_affinity() -> set[int]:
    """Return the processors that this thread may run on."""
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
