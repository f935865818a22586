"""The server's port, and the file descriptors that its connections need."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket
from collections.abc import Mapping
from typing import Any

from ehm.deploy.serve.http.logs import OncePerSecond
from ehm.errors import ConfigError

__all__ = ["bind_port", "fit_connections", "report_loop_errors", "start_listening"]

_LOG = logging.getLogger("ehm.serve")
_BACKLOG = 2048
"""Connections that the kernel keeps until they are accepted, as in uvicorn; the kernel's own limit may be lower."""
_OTHER_FILES = 100
"""Descriptors beside those of connections: of bundles, images of the index, threads' pipes, libraries."""
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def bind_port(host: str, port: int) -> socket.socket:
    """Return a socket that has the port and does not listen yet; raises ConfigError if the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            _bind_unused(listener, address)
        except BaseException:
            listener.close()
            raise
        return listener
    except OSError as error:
        raise _describe_failure(host, port, error) from None
    except UnicodeError:  # of a name with an empty part, or one of more than 63 characters
        raise ConfigError(f"--host {host}: no name of a host; expected an address of this machine") from None


def _bind_unused(listener: socket.socket, address: Any) -> None:
    """Give a socket the port unless somebody listens at it."""
    try:
        # With SO_REUSEADDR two sockets may have a port as long as neither listens, and a second server would find out
        # only after loading its models.
        listener.bind(address)
    except OSError:
        # Closed connections of an earlier server hold a port for a minute; with the option that does not count, and
        # a port at which somebody listens is busy all the same.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # without it again, so that a second server that tries the same is refused
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)


def start_listening(listener: socket.socket, host: str, port: int) -> None:
    """Take connections; raises ConfigError if another server that was started at the same time has the port."""
    try:
        # the connections inherit it, so that the next server may have the port as soon as this one has ended
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.listen(_BACKLOG)
    except OSError as error:
        raise _describe_failure(host, port, error) from None


def fit_connections(most: int) -> int:
    """Return how many connections the process may open, at most ``most``, after raising its limit as far as it may."""
    wanted = most + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return most
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if allowed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed == wanted:
        return most
    fitting = max(1, allowed - _OTHER_FILES)
    _LOG.warning(
        "at most %d connections, not %d: the process may open %d files only (ulimit -n)", fitting, most, allowed
    )
    return fitting


def report_loop_errors(loop: asyncio.AbstractEventLoop) -> None:
    """Log what goes wrong in the event loop itself, and only once a second that it cannot take connections.

    asyncio tries again a second later, but reports each of the attempts that it makes at a time, thousands.
    """
    exhausted = OncePerSecond(_LOG)

    def report_error(loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in _EXHAUSTED:
            exhausted.warning("new connections have to wait: %s", error.strerror)
        else:
            _LOG.error("%s", context["message"], exc_info=error)

    loop.set_exception_handler(report_error)


def _describe_failure(host: str, port: int, error: OSError) -> ConfigError:
    return ConfigError(f"--host {host} --port {port}: {error.strerror}")
