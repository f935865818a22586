"""Checks of what the documents show: commands, configurations, programs and requests, each against the code itself.

A check raises FaultyBlockError with one sentence, and returns whether it knew what it was looking at. A block that
nothing knows has to carry a mark (:mod:`documented.blocks`).
"""


class FaultyBlockError(Exception):
    """A block of a document shows something that does not work."""
