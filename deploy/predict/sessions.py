"""The networks of a bundle, loaded on any device that ``--device`` of ``ehm predict`` and ``ehm serve`` names."""

from __future__ import annotations

from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import Manifest, Precision
from ehm.deploy.predict.offline_parity import names_offline_model, open_offline
from ehm.deploy.predict.runtime import Session, open_session
from ehm.deploy.predict.tensorrt import names_tensorrt, open_tensorrt

__all__ = ["list_precisions", "open_network"]


def list_precisions(manifest: Manifest, device: str) -> list[Precision]:
    """Return the precisions of a bundle's networks that `open_network` takes on a device."""
    if names_offline_model(device):
        return ["float32"]  # a network of its own, whatever else the bundle has
    if names_tensorrt(device):
        return [precision for precision in manifest.models if precision != "int8"]
    return list(manifest.models)


def open_network(bundle: Bundle, device: str, precision: Precision, threads: int = 0) -> Session:
    """Load the network of ``bundle`` in a precision, or its offline model; several threads may run what is returned.

    Errors as of `open_session`, `open_offline` and `open_tensorrt`.
    """
    if names_offline_model(device):
        return open_offline(bundle, device, precision)
    if names_tensorrt(device):
        return open_tensorrt(bundle, device, precision, threads)
    return open_session(bundle.model(precision), device, threads, precision)
