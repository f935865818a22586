"""The process of the server: open the port, load, serve, and stop in order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from ehm.deploy.serve.http.app import create_app
from ehm.deploy.serve.http.connections import drop_unread, limit_connections
from ehm.deploy.serve.http.listening import bind_port, fit_connections, report_loop_errors, start_listening
from ehm.deploy.serve.http.logs import configure_logging
from ehm.deploy.serve.inference.models import name_bundles
from ehm.deploy.serve.inference.service import Service
from ehm.deploy.serve.routes import page
from ehm.deploy.serve.routes.neighbours import Index
from ehm.deploy.serve.settings import Settings
from ehm.errors import ConfigError

__all__ = ["configure_server", "serve"]

_LOG = logging.getLogger("ehm.serve")
_DROP_SECONDS = 0.5
"""Seconds before the end of the time for answers at which clients that do not read are dropped, at most."""


def serve(
    bundles: str | Path | Sequence[str | Path] | None = None, *, config: str | Path | None = None, **settings: Any
) -> None:
    """Serve bundles until SIGTERM or SIGINT; returns once everything that was accepted is answered.

    ``bundles`` are folders that ``ehm export`` wrote, each as ``DIR`` or ``NAME=DIR``; a replaced one is loaded while
    the server runs. ``settings`` are the fields of :class:`ehm.deploy.serve.settings.Settings`, which are the flags of
    ``ehm serve`` (``max_batch=16`` is ``--max-batch 16``). ``config`` is a YAML file with these names as keys, which
    counts for arguments that are left out or None.

    Raises ConfigError for a wrong argument, ExportError for a damaged bundle, BackendError for an absent device,
    DataError for an index that is damaged or fits no bundle.
    """
    checked = Settings.from_arguments(config, bundles=bundles, **settings)
    bundles = checked.bundles
    if isinstance(bundles, str | Path):
        bundles = (bundles,)
    paths = name_bundles(bundles)
    key = _read_api_key(checked.api_key_file)
    index = None if checked.index is None else Index(checked.index)
    configure_logging(checked.log)
    # a port that is taken is reported before the models are loaded
    with bind_port(checked.host, checked.port) as listener:
        _run_event_loop(_run_server(Service(paths, checked, key), index, listener))


def _run_event_loop(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on the fastest event loop that there is."""
    if sys.platform == "win32":  # for which there is no uvloop
        asyncio.run(main)
        return
    import uvloop

    # every image passes from the loop to a thread and back, and uvloop wakes up faster than asyncio's own loop
    uvloop.run(main)


def configure_server(service: Service, index: Index | None = None) -> uvicorn.Config:
    """Return the configuration of uvicorn around a service: its application, and the limits of its connections."""
    settings = service.settings
    protocol = limit_connections(
        service.metrics,
        head_timeout=settings.timeout,
        send_timeout=settings.send_timeout,
        most=fit_connections(settings.max_connections),
    )
    return uvicorn.Config(
        create_app(service, index),
        http=protocol,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_keep_alive=75,  # longer than the minute of common proxies, which would else use a closing connection
        timeout_graceful_shutdown=settings.drain,  # type: ignore[arg-type]  # it is passed on to asyncio
    )


async def _run_server(service: Service, index: Index | None, listener: socket.socket) -> None:
    """Load the models, serve until a signal, and answer what was accepted."""
    settings = service.settings
    server = _Server(configure_server(service, index))
    loop = asyncio.get_running_loop()
    report_loop_errors(loop)
    tasks: list[asyncio.Task[None]] = []

    def reload_models() -> None:
        tasks.append(loop.create_task(service.models.refresh(every=True)))

    stop = _Stop(service, server)
    # before loading, which takes a while in which the server may be stopped
    loop.add_signal_handler(signal.SIGTERM, stop.terminate)
    loop.add_signal_handler(signal.SIGINT, stop.interrupt)
    loop.add_signal_handler(signal.SIGHUP, reload_models)
    await service.models.load_all()
    await asyncio.to_thread(page.make_ready, service, index)
    tasks.append(loop.create_task(service.models.watch()))
    if not service.closed:
        start_listening(listener, settings.host, settings.port)
        await server.serve(sockets=[listener])
    for task in tasks:
        task.cancel()
    _LOG.info("stopped")


class _Stop:
    """The stop of a server in two steps, by signals."""

    def __init__(self, service: Service, server: _Server) -> None:
        self._service = service
        self._server = server

    def terminate(self) -> None:
        """Say that the server is not ready, and close the port once balancers of load have noticed (SIGTERM)."""
        if self._service.stopping:
            return
        delay = self._service.settings.drain_delay
        if delay and self._server.started:
            self._service.stopping = True
            _LOG.info("stopping: not ready any more, but requests are taken for another %g seconds", delay)
            asyncio.get_running_loop().call_later(delay, self._close_port)
        else:
            self._close_port()

    def interrupt(self) -> None:
        """Close the port at once, and the second time wait no longer for answers (SIGINT, which is Ctrl-C)."""
        if self._service.closed:
            self._server.force_exit = True
        self._close_port()

    def _close_port(self) -> None:
        if self._service.closed:
            return
        self._service.stopping = True
        self._service.closed = True
        self._server.should_exit = True
        _LOG.info("stopping: what was accepted is answered, for %g seconds at most", self._service.settings.drain)


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Log the address once the server listens there."""
        await super().startup(sockets)
        if self.should_exit:  # it was stopped meanwhile
            return
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            if ":" in host:  # in an address, IPv6 stands in brackets
                host = f"[{host}]"
            url = f"http://{host}:{port}"
            _LOG.info("ready at %s: / /v1/classify /v1/embed /v2 /metrics /docs", url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for answers as uvicorn does, but not for clients that never read them."""
        seconds = self.config.timeout_graceful_shutdown or 0
        # a moment before the time is over: uvicorn looks every 0.1 s whether connections are left, and logs an error
        # if it has to give up first
        delay = seconds - min(_DROP_SECONDS, seconds / 2)
        timer = asyncio.get_running_loop().call_later(delay, drop_unread, self.server_state.connections)
        await super().shutdown(sockets)
        timer.cancel()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `_Stop`: uvicorn's own handlers close the port at once."""
        yield


def _read_api_key(file: str | Path | None) -> str | None:
    """Return the key of a file, or of EHM_API_KEY; None if there is none.

    It is never an argument, which every user of the machine could read. Raises ConfigError for a key that no client
    could send.
    """
    if file is None:
        origin = "EHM_API_KEY"
        key = os.environ.get(origin)
        if key is None:
            return None
    else:
        origin = f"--api-key-file {file}"
        try:
            key = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise ConfigError(f"{origin}: {getattr(error, 'strerror', None) or 'not text'}") from None
    if not (key and key.isascii() and key.isprintable()):
        raise ConfigError(f"{origin}: expected a key of printable ASCII characters")
    return key
