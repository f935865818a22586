"""Connections: early answers reach their clients, unread ones and open connections are bounded."""

import contextlib
import http.client
import json
import os

import pytest
from server_requests import connect, send_request
from serving import running
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from waiting import wait_until

from ehm.deploy.serve.http import exchange
from ehm.deploy.serve.settings import PIECE

LARGE = 40_000_000
"""Bytes of an answer, above what the kernel keeps for two sockets."""


def read_all(connection):
    """Read until the server closes the connection."""
    received = b""
    while more := connection.recv(2**20):
        received += more
    return received


EARLY = [
    (413, "", "/v1/classify"),
    (415, "Content-Type: text/plain\r\n", "/v1/classify"),
    (404, "", "/v1/classify?model=none"),
    (401, "X-API-Key: wrong\r\n", "/v1/classify"),
    (405, "", "/v2"),
]


@pytest.fixture(scope="module")
def guarded(served_bundle):
    """The address of a server that needs a key and takes small bodies only."""
    with running([served_bundle], key="secret", max_bytes=200_000) as (address, _):
        yield address


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize(("status", "header", "path"), EARLY)
def test_an_early_answer_is_not_lost_to_a_client_that_sends_first_and_closes(guarded, version, status, header, path):
    """nginx's way with an upstream, as it comes: HTTP/1.0, Connection: close.

    A server that closes with unread data in the socket makes the kernel send a reset, which destroys the answer.
    """
    body = os.urandom(3 * 2**20)
    key = "" if status == 401 else "X-API-Key: secret\r\n"
    head = f"POST {path} HTTP/{version}\r\nHost: x\r\n{header}{key}Connection: close\r\nContent-Length: {len(body)}\r\n"
    for _ in range(3):
        with connect(guarded) as client:
            client.sendall(head.encode() + b"\r\n" + body)
            answer = read_all(client)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert list(json.loads(answer.partition(b"\r\n\r\n")[2])) == ["error"]


def test_a_kept_connection_goes_on_behind_an_early_answer(served_bundle):
    with running([served_bundle], max_bytes=200_000) as (address, _):
        connection = http.client.HTTPConnection(address, timeout=30)
        connection.connect()
        first = connection.sock
        for _ in range(3):
            connection.request("POST", "/v1/classify", bytes(3 * 2**20))
            answer = connection.getresponse()
            assert (answer.status, list(json.loads(answer.read()))) == (413, ["error"])
            connection.request("GET", "/v2/health/live")
            assert connection.getresponse().read() == b'{"live":true}'
        assert connection.sock is first
        connection.close()


@pytest.mark.parametrize(("seconds", "most"), [(0.2, 2**40), (600, 2**20)])
def test_a_refused_body_is_read_on_within_limits(served_bundle, monkeypatch, seconds, most):
    """Each of the two limits alone ends it."""
    monkeypatch.setattr(exchange, "_LINGER_SECONDS", seconds)
    monkeypatch.setattr(exchange, "_LINGER_BYTES", most)
    with running([served_bundle], max_bytes=200_000) as (address, service), connect(address) as client:
        client.sendall(b"POST /v1/classify HTTP/1.0\r\nContent-Length: 1000000000\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")
        assert service.under_way == 0  # what lingers keeps nobody out
        with contextlib.suppress(OSError):  # the connection is reset, or closed, before the gigabyte is over
            for _ in range(1000):
                client.sendall(bytes(10**6))
                if seconds < 1:
                    assert read_all(client).endswith(b"}")
                    break
            else:
                pytest.fail("everything was read")
        wait_until(lambda: service.metrics.registry.get_sample_value("ehm_connections") == 0)


@pytest.fixture
def large(served_bundle, monkeypatch):
    """A server whose /docs are as large as can be, and its service."""
    monkeypatch.setattr("ehm.deploy.serve.http.app._render_page", lambda app: "x" * LARGE)
    with running([served_bundle], send_timeout=600, max_memory=int(1.5 * LARGE)) as (address, service):
        yield address, service


def start_reading(address):
    """A client that reads the first bytes of a large answer and no more."""
    client = connect(address)
    client.sendall(b"GET /docs HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.recv(15) == b"HTTP/1.1 200 OK"
    return client


def test_an_answer_that_nobody_reads_counts_as_memory_until_it_is_read(large):
    address, service = large
    with start_reading(address) as lazy:
        assert service.memory.held == LARGE
        assert service.under_way == 0  # and keeps no other request out
        refused = send_request(address, "GET", "/docs")
        assert refused.status == 429
        assert "all requests together take more than" in refused.body["error"]
        alive = send_request(address, "GET", "/v2/health/live")
        assert (alive.status, alive.body) == (200, {"live": True})
        received = 0
        while received < LARGE:
            received += len(lazy.recv(2**20))
    wait_until(lambda: service.memory.held == 0)
    complete = send_request(address, "GET", "/docs")
    assert (complete.status, complete.body) == (200, b"x" * LARGE)


def test_no_more_than_a_piece_of_an_answer_waits_in_a_connection(large, monkeypatch):
    """A transport copies what its client does not take, without any limit."""
    sizes = []
    pause = HttpToolsProtocol.pause_writing

    def note(protocol):
        sizes.append(protocol.transport.get_write_buffer_size())
        pause(protocol)

    monkeypatch.setattr(HttpToolsProtocol, "pause_writing", note)
    address, _ = large
    with start_reading(address):
        wait_until(lambda: sizes)
    assert max(sizes) <= PIECE


def test_a_client_that_reads_too_slowly_is_dropped(served_bundle, monkeypatch, caplog):
    monkeypatch.setattr("ehm.deploy.serve.http.app._render_page", lambda app: "x" * LARGE)
    with running([served_bundle], send_timeout=0.3) as (address, service), start_reading(address) as lazy:
        wait_until(lambda: dropped(service, "unread") == 1)
        wait_until(lambda: service.memory.held == 0)
        with pytest.raises(ConnectionResetError):
            read_all(lazy)
    assert [record.getMessage() for record in caplog.records if "unread for 0.3 seconds" in record.getMessage()]


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\nGET /v2 HTTP/1.1\r\nx: "])
def test_a_connection_without_a_whole_head_is_closed(served_bundle, sent):
    with running([served_bundle], timeout=0.3) as (address, _), connect(address) as silent:
        silent.sendall(sent)
        answer = b""
        while more := silent.recv(1000):
            answer += more
            silent.sendall(b"T")  # the next head goes on
        assert answer.startswith(b"HTTP/1.1 200" if b"\r\n" in sent else b"")


@pytest.mark.parametrize(
    "start",
    [
        b"GET /v2 HTTP/1.1\r\nx: ",
        b"GET /",
        b"POST /v1/classify HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;x=",
        b"POST /v1/classify HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx: ",
    ],
)
def test_a_head_that_never_ends_is_refused_before_it_takes_memory(served_bundle, start):
    """The parser itself keeps all of it; the extensions of a chunk and trailers count as a head does."""
    with running([served_bundle], timeout=600) as (address, service), connect(address) as client:
        client.sendall(start)
        sent = 0
        with contextlib.suppress(ConnectionError):  # the server closes while the client sends
            while sent < 2**24:
                client.sendall(b"x" * 10_000)
                sent += 10_000
        assert sent < 2**24
        assert dropped(service, "head") == 1


def test_one_connection_more_takes_the_place_of_the_longest_idle_one(served_bundle):
    with running([served_bundle], max_connections=3, timeout=600) as (address, service):  # nothing else closes them
        idle = [connect(address) for _ in range(3)]
        wait_until(lambda: service.metrics.registry.get_sample_value("ehm_connections") == 3)
        assert is_alive(idle[0])  # so that the second is idle the longest
        assert send_request(address, "GET", "/v2/health/live").status == 200
        assert gone(idle[1])
        assert is_alive(idle[0])
        assert is_alive(idle[2])
        assert dropped(service, "limit") == 1
        for connection in idle:
            connection.close()


def test_a_connection_with_a_request_keeps_its_place(served_bundle):
    with running([served_bundle], max_connections=2, timeout=600) as (address, service):
        busy = [connect(address) for _ in range(2)]
        for connection in busy:
            connection.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
        wait_until(lambda: service.under_way == 2)
        with connect(address) as another:
            assert gone(another)
        for connection in busy:
            connection.sendall(b"abc")
            assert connection.recv(100).startswith(b"HTTP/1.1 422 ")
            connection.close()


def is_alive(connection):
    connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = b""
    while not answer.endswith(b"}"):
        more = connection.recv(1000)
        if not more:
            return False
        answer += more
    return answer.startswith(b"HTTP/1.1 200 ")


def gone(connection):
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def dropped(service, reason):
    return service.metrics.registry.get_sample_value("ehm_connections_dropped_total", {"reason": reason})
