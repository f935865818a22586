"""The process: opens the socket, loads, serves, and stops in order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import uvicorn

from ehm.deploy.bundle import Precision
from ehm.deploy.serve import explore
from ehm.deploy.serve.app import create_app
from ehm.deploy.serve.connections import timed
from ehm.deploy.serve.logs import configure
from ehm.deploy.serve.models import named
from ehm.deploy.serve.neighbours import Index
from ehm.deploy.serve.service import Service
from ehm.deploy.serve.settings import Settings
from ehm.errors import ConfigError

__all__ = ["serve"]

_LOG = logging.getLogger("ehm.serve")


def serve(
    bundles: str | Path | Sequence[str | Path] | None = None,
    *,
    config: str | Path | None = None,
    host: str | None = None,
    port: int | None = None,
    device: str | None = None,
    precision: Precision | None = None,
    threads: int | None = None,
    max_batch: int | None = None,
    max_delay: float | None = None,
    queue: int | None = None,
    timeout: float | None = None,
    drain: float | None = None,
    max_bytes: int | None = None,
    max_pixels: int | None = None,
    max_memory: int | None = None,
    poll: float | None = None,
    index: str | Path | None = None,
    api_key_file: str | Path | None = None,
    model_control: bool | None = None,
    log: Literal["text", "json"] | None = None,
) -> None:
    """Serve bundles until SIGTERM or SIGINT; returns once everything that was accepted is answered.

    ``bundles`` are folders that ``ehm export`` wrote, each as ``DIR`` or ``NAME=DIR``; a replaced one is loaded while
    the server runs. ``config`` is a YAML file with the names of these arguments as keys, which counts where an argument
    is None; what is in neither has the default of :class:`Settings`. ``port`` 0 takes a free one. ``device`` and
    ``precision`` choose ONNX Runtime's provider and the network's numbers, ``threads`` the cores of one batch (0: all).
    At most ``max_batch`` images run together, after a
    wait of at most ``max_delay`` milliseconds; ``queue`` requests of a model wait at most. An answer takes at most
    ``timeout`` seconds, stopping ``drain``. ``max_bytes`` and ``max_pixels`` bound a request, ``max_memory`` the bytes
    of all together; ``poll`` is how often in seconds folders are looked at. ``index`` is a folder that ``ehm predict
    --out`` wrote: images among which the page at ``/`` finds those most like another. Requests need the key in
    ``api_key_file``, or in the environment variable EHM_API_KEY, if there is one; ``model_control`` lets clients load
    and unload models. docs/serving.md has the details.

    Raises ConfigError for a wrong argument, ExportError for a damaged bundle, BackendError for an absent device,
    DataError for an index that is damaged or fits no bundle.
    """
    arguments = locals()  # all of them, and nothing else yet
    settings = Settings.checked(**arguments)
    places = named([settings.bundles] if isinstance(settings.bundles, str | Path) else settings.bundles)
    key = _api_key(settings.api_key_file)
    images = Index(settings.index) if settings.index is not None else None
    configure(settings.log)
    with _bound(settings.host, settings.port) as listener:
        asyncio.run(_serve(Service(places, settings, key), images, listener))


async def _serve(service: Service, index: Index | None, listener: socket.socket) -> None:
    config = uvicorn.Config(
        create_app(service, index),
        http=timed(service.settings.timeout),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_keep_alive=75,  # longer than the minute of common proxies, which would else use a closing connection
        timeout_graceful_shutdown=service.settings.drain,  # type: ignore[arg-type]  # it is passed on to asyncio
    )
    server = _Server(config)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if not service.stopping:
            _LOG.info("stopping: what was accepted is answered, for %g seconds at most", service.settings.drain)
        service.stopping = server.should_exit = True

    def reload() -> None:
        tasks.append(loop.create_task(service.models.refresh(every=True)))

    tasks: list[asyncio.Task[None]] = []
    for number, action in ((signal.SIGTERM, stop), (signal.SIGINT, stop), (signal.SIGHUP, reload)):
        loop.add_signal_handler(number, action)
    await service.models.load_all()
    await asyncio.to_thread(explore.make_ready, service, index)
    tasks.append(loop.create_task(service.models.watch()))
    await server.serve(sockets=[listener])
    for task in tasks:
        task.cancel()
    _LOG.info("stopped")


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say where it listens, once it does."""
        await super().startup(sockets)
        for listener in [] if self.should_exit else sockets or []:
            host, port = listener.getsockname()[:2]
            url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            _LOG.info("ready at %s: / /v1/classify /v1/embed /v2 /metrics /docs", url)


def _bound(host: str, port: int) -> socket.socket:
    """A socket that does not listen yet; raises ConfigError where the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except BaseException:
            listener.close()
            raise
        return listener
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port}: {error.strerror}") from None


def _api_key(file: str | Path | None) -> str | None:
    """The key of a file, or of EHM_API_KEY; never an argument, which every user of the machine could read."""
    if file is None:
        origin, key = "EHM_API_KEY", os.environ.get("EHM_API_KEY")
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
