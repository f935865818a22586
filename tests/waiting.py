"""Waiting for what another thread or the server does a little later."""

import time

LIMIT = 20
"""Seconds that a test waits at most: much more than anything takes, even on a busy machine."""


def wait_until(condition):
    """Wait until a function returns something true; fail after LIMIT seconds."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
