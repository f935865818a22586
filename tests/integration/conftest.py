"""Fixtures of tests that train in two processes."""

import pytest
from process_pair import ProcessPair


@pytest.fixture(scope="session")
def pair():
    """Two processes that run commands together, for all tests of a worker."""
    processes = ProcessPair()
    yield processes
    processes.close()
