"""The inference server: bundles behind the Open Inference Protocol v2, and image files in, classes or features out.

Each module stands on those above it:

    settings, metrics, logs      limits, typed; what is seen of the server
    json_numbers, json_request   the JSON of an inference request
    protocol, schemas            bodies of the protocol <-> arrays; its answers, described
    images, forms                what strangers send, within limits
    batching, models             requests that wait together run together; load, verify, replace
    memory, service              what all requests hold; the way of a request
    v2, v1, dense, explore       routes
    exchange, edge, app          the messages of a request; the web application around it
    connections, listening       limits of connections, the port
    server                       the process: start, signals, end
"""

from ehm.errors import BackendError

try:
    from ehm.deploy.serve.http.server import serve
except ModuleNotFoundError as error:
    raise BackendError(f"{error.name} is not installed; pip install 'ehm[serve]' installs it") from None

__all__ = ["serve"]
