"""How the kernels are compiled. Importing numba takes most of a second, so only kernels import this, on first use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

__all__ = ["kernel"]


def kernel(function: Callable[..., Any]) -> Any:
    """Compile ``function`` at its first call, without the interpreter lock, and keep the machine code on disk.

    numba keeps it beside the source, else (an installation that cannot be written) in the user's cache folder;
    ``NUMBA_CACHE_DIR`` names another place. Where none can be written every process compiles anew.
    """
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # "no locator available": no folder for the cache can be written
        return numba.njit(nogil=True)(function)
