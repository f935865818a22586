"""The port, file descriptors, and log lines that come by the thousand."""

import asyncio
import errno
import logging
import os
import resource
import socket

import pytest

from ehm.deploy.serve.http.listening import bind_port, fit_connections, report_loop_errors, start_listening
from ehm.deploy.serve.http.logs import OncePerSecond, _Json
from ehm.errors import ConfigError


def test_a_port_belongs_to_one_server_from_the_start():
    with bind_port("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        for listening in (False, True):
            if listening:
                start_listening(first, "127.0.0.1", port)
            with pytest.raises(ConfigError, match=f"--port {port}: Address already in use"):
                bind_port("127.0.0.1", port)


@pytest.mark.parametrize("host", ["a..b", "a" * 64])
def test_a_host_that_is_no_name_is_one_sentence(host):
    with pytest.raises(ConfigError, match=f"--host {host}: no name of a host"):
        bind_port(host, 0)


def serve_once(listener):
    """Answer one client and close first, which keeps the port for a minute (TIME_WAIT)."""
    port = listener.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)) as client:
        served, _ = listener.accept()
        served.close()
        assert client.recv(1) == b""
    listener.close()
    return port


def test_a_port_is_free_as_soon_as_its_server_has_ended_and_for_one_server_only():
    listener = bind_port("127.0.0.1", 0)
    for _ in range(3):
        start_listening(listener, *listener.getsockname())
        port = serve_once(listener)
        listener = bind_port("127.0.0.1", port)
        with pytest.raises(ConfigError, match=f"--port {port}: Address already in use"):
            bind_port("127.0.0.1", port)
    listener.close()


def test_a_port_that_is_lost_while_models_load_is_said_too():
    with socket.socket() as first, socket.socket() as second:
        for listener in (first, second):  # as servers of another make bind: both may, until one listens
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", first.getsockname()[1]))
        port = first.getsockname()[1]
        start_listening(first, "127.0.0.1", port)
        with pytest.raises(ConfigError, match=f"--port {port}: Address already in use"):
            start_listening(second, "127.0.0.1", port)


@pytest.mark.parametrize(
    ("soft", "hard", "fitting", "raised"),
    [
        (5000, 5000, 1000, None),
        (256, 5000, 1000, 1100),
        (256, resource.RLIM_INFINITY, 1000, 1100),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 1000, None),
        (256, 512, 412, 512),
        (512, 512, 412, None),
        (64, 64, 1, None),
    ],
)
def test_connections_fit_into_the_files_that_may_be_open(monkeypatch, caplog, soft, hard, fitting, raised):
    limits = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limit: limits.append(limit))
    with caplog.at_level(logging.WARNING, "ehm.serve"):
        assert fit_connections(1000) == fitting
    assert limits == ([] if raised is None else [(raised, hard)])
    said = [record.getMessage() for record in caplog.records]
    assert said == (
        []
        if fitting == 1000
        else [f"at most {fitting} connections, not 1000: the process may open {hard} files only (ulimit -n)"]
    )


def test_running_out_of_descriptors_is_one_line_in_the_log_s_own_form(caplog):
    async def main():
        loop = asyncio.get_running_loop()
        report_loop_errors(loop)
        for number in (errno.EMFILE, errno.ENFILE) * 3000:
            error = OSError(number, os.strerror(number))
            loop.call_exception_handler({"message": "socket.accept() out of system resource", "exception": error})
        loop.call_exception_handler({"message": "something else", "exception": ValueError("a reason")})

    asyncio.run(main())
    first, other = caplog.records
    assert first.getMessage() == "new connections have to wait: Too many open files"
    assert (first.exc_info, first.levelname) == (None, "WARNING")
    assert '"message": "something else"' in _Json().format(other)
    assert "ValueError: a reason" in _Json().format(other)


def test_what_was_left_out_is_said(monkeypatch, caplog):
    now = [100.0]
    monkeypatch.setattr("ehm.deploy.serve.http.logs.time.monotonic", lambda: now[0])
    often = OncePerSecond(logging.getLogger("ehm.serve"))
    for seconds in (0, 0.4, 0.4, 0.4, 0.9, 0.2):
        now[0] += seconds
        often.warning("again: %d", 7)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "again: 7",
        "again: 7 (2 more since the last such line)",
        "again: 7 (1 more since the last such line)",
    ]
