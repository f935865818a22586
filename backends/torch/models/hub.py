"""Use the Hugging Face Hub without a connection: cached files are used, others fail at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, get_session

__all__ = ["reachable_or_offline"]

_PATIENCE = 5
"""Seconds for the hub to answer."""


@contextmanager
def reachable_or_offline() -> Iterator[None]:
    """Let downloads from a hub that does not answer fail at once for a while, unless the file is in the cache.

    huggingface_hub 2.4 tries six times for each name that a file of weights may have, for a minute and with a warning
    each, and has an argument against that in none of the functions that timm calls; its offline mode (HF_HUB_OFFLINE)
    is a constant. This can go when it has one.
    """
    before = constants.HF_HUB_OFFLINE
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
    except Exception:  # those of its HTTP library, which another version of it changes
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
