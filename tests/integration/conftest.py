"""Fixtures that several files share: two processes that train together, and an S3 server."""

import pytest
from process_pair import ProcessPair


@pytest.fixture(scope="session")
def pair():
    """Two processes that run commands together, for all tests of a worker."""
    processes = ProcessPair()
    yield processes
    processes.close()


@pytest.fixture(scope="module")
def store_server():
    """An S3 server, to which the environment leads."""
    from s3_server import serve_s3  # moto takes seconds to import

    with pytest.MonkeyPatch.context() as patch, serve_s3(patch) as running:
        yield running


@pytest.fixture
def calm_store(store_server, monkeypatch, tmp_path):
    """No fault, short waits, a home of its own."""
    from ehm.data.stores import store

    store_server.fault = lambda path: None
    store_server.reads.clear()
    monkeypatch.setattr(store, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
