"""Fixtures that several files share: two processes that train together, an S3 server, and a bundle that is served."""

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


@pytest.fixture(scope="session")
def served_bundle(tmp_path_factory):
    """A bundle called both, which gives logits and features and which no test changes."""
    from serving import means_bundle  # onnx and uvicorn take a second to import

    return means_bundle(tmp_path_factory.mktemp("bundles") / "both")


@pytest.fixture(scope="module")
def limited_server(served_bundle):
    """The address of a server that takes at most 200,000 bytes and 40,000 pixels in a request."""
    from serving import running

    with running([served_bundle], max_bytes=200_000, max_pixels=40_000) as (address, _):
        yield address
