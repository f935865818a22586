"""The refusal of a folder in a layout that has no encoder like ours."""

from __future__ import annotations

__all__ = ["NoSuchEncoderError"]


class NoSuchEncoderError(Exception):
    """A library has no encoder like ours; the message says what it lacks, as the end of a sentence."""
