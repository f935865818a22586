"""The handler of each kind of bundle, found by the task that its manifest names."""

from __future__ import annotations

from importlib import import_module

from ehm.deploy.bundle.manifest import Manifest
from ehm.deploy.predict.handler import Handler

__all__ = ["create_handler"]


def create_handler(manifest: Manifest) -> Handler:
    """Return the handler for the bundle of a manifest, from the file of this folder that has the task's name."""
    handler: Handler = import_module(f"ehm.deploy.predict.{manifest.task}").HANDLER(manifest)
    return handler
