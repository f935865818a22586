"""The configurations of the downstream tasks: supervised training from an encoder, and how it is measured."""

from ehm.config.tasks.base import TaskConfig
from ehm.config.tasks.classification import AugmentConfig, FinetuneConfig, ProbeConfig
from ehm.config.tasks.detection import DetectionConfig, DetectionData
from ehm.config.tasks.retrieval import RetrievalConfig
from ehm.config.tasks.segmentation import SegmentationConfig, SegmentationData, SlideConfig, UperNetConfig
from ehm.config.tasks.vision_language import QuestionSet, VisionLanguageConfig, VisionLanguageData

__all__ = [
    "AugmentConfig",
    "DetectionConfig",
    "DetectionData",
    "FinetuneConfig",
    "ProbeConfig",
    "QuestionSet",
    "RetrievalConfig",
    "SegmentationConfig",
    "SegmentationData",
    "SlideConfig",
    "TaskConfig",
    "UperNetConfig",
    "VisionLanguageConfig",
    "VisionLanguageData",
]
