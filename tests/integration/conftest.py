"""What several files of tests share that train in two processes."""

import pytest
from process_pair import ProcessPair


@pytest.fixture(scope="module")
def pair():
    """Two processes that run commands together, for all tests of a file."""
    processes = ProcessPair()
    yield processes
    processes.close()
