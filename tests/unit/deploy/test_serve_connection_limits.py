"""Limits of connections without a network, on an event loop whose clock the test moves."""

import asyncio
import socket
from types import SimpleNamespace
from unittest.mock import create_autospec

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from ehm.deploy.serve.http import logs
from ehm.deploy.serve.http.connections import limit_connections
from ehm.deploy.serve.inference.metrics import Metrics

HEAD_TIMEOUT = 10
SEND_TIMEOUT = 20
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Loop(asyncio.SelectorEventLoop):
    """An event loop that can be set ahead."""

    ahead = 0.0

    def time(self):
        return super().time() + self.ahead

    async def pass_time(self, seconds):
        """Let so many seconds pass at once, and run what is due by then."""
        self.ahead += seconds
        for _ in range(5):
            await asyncio.sleep(0)


class Connection:
    """A connection without a network: what uvicorn makes of it, and the transport that it would use.

    The application answers once ``go`` is set.
    """

    def __init__(self, loop):
        self.loop = loop
        self.go = asyncio.Event()
        self.sockets = socket.socketpair()
        self.transport = create_autospec(asyncio.Transport, instance=True)
        self.transport.get_extra_info.side_effect = {"socket": self.sockets[0]}.get
        self.transport.is_closing.return_value = False
        self.transport.get_write_buffer_size.return_value = 1
        config = Config(self.answer, interface="asgi3", log_config=None, timeout_keep_alive=10**6)
        kind = limit_connections(Metrics(), head_timeout=HEAD_TIMEOUT, send_timeout=SEND_TIMEOUT, most=1)
        state = ServerState()
        self.connect = lambda: kind(config, state, {}, loop)
        self.protocol = self.connect()

    async def answer(self, scope, receive, send):
        await self.go.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def end(self):
        """Let the client leave, so that no task waits any more."""
        self.protocol.connection_lost(None)
        self.go.set()
        self.loop.run_until_complete(self.loop.pass_time(0))

    @property
    def closed(self):
        return self.transport.close.called or self.transport.abort.called


@pytest.fixture
def connection():
    loop = Loop()
    made = Connection(loop)
    yield made
    made.end()
    loop.close()
    for end in made.sockets:
        end.close()


def run(connection, steps):
    """Open a connection, and take the test's steps on its loop."""

    async def main():
        connection.protocol.connection_made(connection.transport)
        await steps()

    connection.loop.run_until_complete(main())


def test_a_client_that_goes_on_reading_keeps_its_connection_however_long_it_takes(connection):
    async def read_piece_by_piece():
        connection.protocol.data_received(REQUEST)
        for _ in range(5):
            connection.protocol.pause_writing()
            await connection.loop.pass_time(SEND_TIMEOUT - 1)
            connection.protocol.resume_writing()
        await connection.loop.pass_time(10 * SEND_TIMEOUT)

    run(connection, read_piece_by_piece)
    assert not connection.closed


def test_a_client_that_stops_reading_is_dropped_once_the_time_for_a_piece_is_over(connection):
    async def stop_reading():
        connection.protocol.data_received(REQUEST)
        connection.protocol.pause_writing()
        await connection.loop.pass_time(SEND_TIMEOUT - 1)
        assert not connection.closed
        await connection.loop.pass_time(2)

    run(connection, stop_reading)
    connection.transport.abort.assert_called_once_with()


def test_a_connection_that_waits_for_an_answer_or_for_its_next_request_is_not_silent(connection):
    async def wait_for_two_answers():
        for _ in range(2):
            await connection.loop.pass_time(HEAD_TIMEOUT - 1)
            connection.protocol.data_received(REQUEST)
            await connection.loop.pass_time(10 * HEAD_TIMEOUT)
            connection.go.set()
            await connection.loop.pass_time(10 * HEAD_TIMEOUT)
            assert connection.transport.write.called
            connection.transport.write.reset_mock()
            connection.go.clear()

    run(connection, wait_for_two_answers)
    assert not connection.closed


@pytest.mark.parametrize("before", [b"", REQUEST])
def test_a_head_that_does_not_end_closes_its_connection(connection, before):
    """The time counts from the first byte of a later head on; further bytes do not prolong it."""

    async def begin_a_head():
        connection.go.set()
        if before:
            connection.protocol.data_received(before)
            await connection.loop.pass_time(10 * HEAD_TIMEOUT)
        connection.protocol.data_received(b"GET / HT")
        await connection.loop.pass_time(HEAD_TIMEOUT - 1)
        assert not connection.closed
        connection.protocol.data_received(b"T")
        await connection.loop.pass_time(2)

    run(connection, begin_a_head)
    connection.transport.close.assert_called_once_with()


def test_connections_over_the_limit_fill_no_log(connection, monkeypatch, caplog):
    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: 100.0))

    async def connect_again_and_again():
        for _ in range(20):
            connection.connect().connection_made(connection.transport)

    run(connection, connect_again_and_again)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == "1 connections are open, as many as may be: one is closed for each new one"
    assert connection.transport.abort.call_count == 20
