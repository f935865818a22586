"""Operators that fell back from a device to the CPU while some steps ran, as torch itself reports it.

torch's own fallback copies the arguments of such an operator by ``_to_cpu``, which its profiler shows inside of the
operator. A vendor's fallback warns, some only about the first operator of a process: ask in a fresh one.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

__all__ = ["find_fallbacks"]

_COPY = "aten::_to_cpu"
_WARNING = re.compile(r"operator '([\w:.]+)'.*(?:fall back|not currently supported)", re.DOTALL)


def find_fallbacks(work: Callable[[], None]) -> list[str]:
    """Run ``work`` and return the names of the operators that fell back to the CPU meanwhile, each once."""
    found = set()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            work()
    for event in profiler.events() or []:
        if event.name == _COPY and event.cpu_parent is not None:
            found.add(event.cpu_parent.name)
    for warning in caught:
        named = _WARNING.search(str(warning.message))
        if named:
            found.add(named[1])
    return sorted(found)
