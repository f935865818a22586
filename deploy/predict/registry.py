"""The handler of each kind of bundle, found by the task that its manifest names."""

from __future__ import annotations

from ehm.deploy.bundle.manifest import Manifest, Task
from ehm.deploy.predict.classification import ClassificationHandler
from ehm.deploy.predict.detection import DetectionHandler
from ehm.deploy.predict.features import FeaturesHandler
from ehm.deploy.predict.handler import Handler
from ehm.deploy.predict.segmentation import SegmentationHandler

__all__ = ["HANDLERS", "create_handler"]

HANDLERS: dict[Task, type[Handler]] = {
    "classification": ClassificationHandler,
    "features": FeaturesHandler,
    "segmentation": SegmentationHandler,
    "detection": DetectionHandler,
}


def create_handler(manifest: Manifest) -> Handler:
    """Return the handler for the bundle of a manifest."""
    return HANDLERS[manifest.task](manifest)
