"""The compiler of the kernels. Importing numba takes most of a second, so only kernels import this, on first use.

Kernels that call each other stand in one file: machine code on disk is compiled anew when the file of its kernel
changes, and numba does not notice that another file did, whose kernels are part of it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numba

__all__ = ["kernel"]


def kernel(function: Callable[..., Any]) -> Any:
    """Compile ``function`` at its first call, without the interpreter lock, and keep the machine code on disk.

    numba keeps it beside the source, else (an installation that cannot be written) in the user's cache folder;
    ``NUMBA_CACHE_DIR`` names another place. If none can be written, or its disk is full, every process compiles anew.
    """
    try:
        compiled: Any = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # "no locator available": no folder for the cache can be written
        return numba.njit(nogil=True)(function)
    # numba lets a full disk end the first call; it has no setting for that (FunctionCache.save_overload, numba 0.68)
    compiled._cache.save_overload = _ignore_os_errors(compiled._cache.save_overload)
    return compiled


def _ignore_os_errors(save: Callable[..., None]) -> Callable[..., None]:
    """Wrap ``save`` of a cache so that it fails silently: a run can do without a cache."""

    def save_if_possible(*arguments: Any) -> None:
        with suppress(OSError):
            save(*arguments)

    return save_if_possible
