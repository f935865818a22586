"""The inference server: bundles behind the Open Inference Protocol v2, and image files in, classes or features out.

Each module stands on those above it:

    settings     limits, typed
    protocol     bodies of the protocol <-> arrays          compression, images   what strangers send, within limits
    schemas      its answers, described
    batching     requests that wait together run together   models                load, verify, replace
    service      the way of a request                       v2, v1                routes
    edge, app    the web application around it              metrics, logs         what is seen of it
    server       the process: socket, signals, end
"""

from ehm.errors import BackendError

try:
    from ehm.deploy.serve.server import serve
except ModuleNotFoundError as error:
    raise BackendError(f"{error.name} is not installed; pip install 'ehm[serve]' installs it") from None

__all__ = ["serve"]
