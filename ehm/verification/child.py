"""Checks in processes of their own: one that crashes or hangs is a failed check, and the others go on."""

from __future__ import annotations

from typing import Any

from ehm.doctor.child import ask_child
from ehm.errors import BackendError
from ehm.verification.check import SkipError

__all__ = ["ask_in_child"]

PATIENCE = 600
"""Seconds for a child: a framework is imported, and graphs may have to be compiled."""
_SKIPPED = "SkipError: "
"""The last words of a child whose check does not apply begin with the name of the exception."""


def ask_in_child(code: str, *arguments: str) -> Any:
    """Run ``code`` in a child process and return what it prints last, as JSON; raises BackendError with the reason."""
    answer, reason = ask_child(code, *arguments, patience=PATIENCE)
    if answer is not None:
        return answer
    if _SKIPPED in reason:
        raise SkipError(reason.partition(_SKIPPED)[2])
    raise BackendError(f"a process of its own gave no answer: {reason}")
