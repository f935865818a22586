"""The configurations of the downstream tasks: supervised training from an encoder, and how it is measured."""

from ehm.config.tasks.base import TaskConfig
from ehm.config.tasks.classification import AugmentConfig, FinetuneConfig, ProbeConfig
from ehm.config.tasks.detection import DetectionConfig, DetectionData
from ehm.config.tasks.retrieval import RetrievalConfig
from ehm.config.tasks.segmentation import SegmentationConfig, SegmentationData, SlideConfig, UperNetConfig

__all__ = [
    "TASKS",
    "AugmentConfig",
    "DetectionConfig",
    "DetectionData",
    "FinetuneConfig",
    "ProbeConfig",
    "RetrievalConfig",
    "SegmentationConfig",
    "SegmentationData",
    "SlideConfig",
    "TaskConfig",
    "UperNetConfig",
]

TASKS: dict[str, type[TaskConfig]] = {
    "classification": FinetuneConfig,
    "detection": DetectionConfig,
    "segmentation": SegmentationConfig,
    "retrieval": RetrievalConfig,
}
"""The configuration of each task, by the value of ``--task`` and of the key ``task``."""
