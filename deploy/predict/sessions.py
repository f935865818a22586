"""The networks of a bundle, loaded on any device that ``--device`` of ``ehm predict`` and ``ehm serve`` names."""

from __future__ import annotations

from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import Precision
from ehm.deploy.predict.offline_parity import names_offline_model, open_offline
from ehm.deploy.predict.runtime import Session, open_session
from ehm.deploy.predict.tensorrt import names_tensorrt, open_tensorrt

__all__ = ["open_network"]


def open_network(bundle: Bundle, device: str, precision: Precision, threads: int = 0) -> Session:
    """Load the network of ``bundle`` in a precision, or its offline model; several threads may run what is returned.

    Errors as of `open_session`, `open_offline` and `open_tensorrt`.
    """
    if names_offline_model(device):
        return open_offline(bundle, device, precision)
    if names_tensorrt(device):
        return open_tensorrt(bundle, device, precision, threads)
    return open_session(bundle.model(precision), device, threads, precision)
