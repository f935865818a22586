"""The inference server: bundles behind the Open Inference Protocol v2, and image files in, classes or features out.

Each module stands on those above it:

    settings                        limits and flags, typed
    inference/metrics, http/logs    what is seen of the server
    routes/json_numbers, json_request
                                    the JSON of an inference request
    routes/protocol, schemas        bodies of the protocol <-> arrays; its answers, described
    inference/images, forms         what strangers send, within limits
    inference/batching              requests that wait together run together
    inference/served_model, models  a bundle in service; load, verify, replace
    inference/memory, service       what all requests hold; the way of a request
    routes/                         open_inference, images, dense, page
    http/exchange, edge, app        the messages of a request; the web application around it
    http/connections, listening     limits of connections, the port
    http/server                     the process: start, signals, end
"""

from typing import Any

from ehm.errors import BackendError
from ehm.installation import build_install_command

__all__ = ["serve"]


def __getattr__(name: str) -> Any:
    """Import `serve` when it is asked for: ``ehm --help`` reads the settings, and needs no web framework for that."""
    if name != "serve":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from ehm.deploy.serve.http.server import serve
    except ModuleNotFoundError as error:
        raise BackendError(f"{error.name} is not installed; {build_install_command('serve')} installs it") from None
    return serve
