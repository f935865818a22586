"""Waiting for what another thread or process does a little later."""

import time

LIMIT = 20
"""Seconds that a test waits at most for a thread: much more than anything takes, even on a busy machine."""


def wait_until(condition, limit=LIMIT):
    """Wait until a function returns something true; fail after ``limit`` seconds."""
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
