"""Typed configuration: YAML in, validated objects out, every error at once with the file and the key that caused it.

A configuration is a YAML file (a path, or the name of one shipped in ``configs/``) plus ``--set key=value`` overrides
with dotted keys. Unknown keys are errors. Nothing here imports a framework.
"""

from ehm.config.comparison import ArmConfig, MeasureConfig, StudyConfig
from ehm.config.data import DataConfig, ImageData, PretrainData, SourceConfig
from ehm.config.encoders import encoder_spec
from ehm.config.export import AscendConfig, BatchesConfig, CalibrationConfig, ExportConfig, TritonConfig
from ehm.config.inputs import Triple
from ehm.config.language import LanguageConfig, ResamplerConfig
from ehm.config.language_training import LanguageTrainingConfig
from ehm.config.loading import load_config, read_config, shipped_configs
from ehm.config.pretraining import MaskConfig, ModelConfig, TrainConfig
from ehm.config.sections import LoraConfig, ModelSource, OptimConfig, RunConfig
from ehm.config.sources import TableColumns
from ehm.config.tasks import (
    AugmentConfig,
    DetectionConfig,
    DetectionData,
    FinetuneConfig,
    ProbeConfig,
    QuestionSet,
    RetrievalConfig,
    SegmentationConfig,
    SegmentationData,
    SlideConfig,
    TaskConfig,
    UperNetConfig,
    VisionLanguageConfig,
    VisionLanguageData,
)
from ehm.config.tokenizer import TokenizerConfig
from ehm.config.watch import WatchConfig

__all__ = [
    "ArmConfig",
    "AscendConfig",
    "AugmentConfig",
    "BatchesConfig",
    "CalibrationConfig",
    "DataConfig",
    "DetectionConfig",
    "DetectionData",
    "ExportConfig",
    "FinetuneConfig",
    "ImageData",
    "LanguageConfig",
    "LanguageTrainingConfig",
    "LoraConfig",
    "MaskConfig",
    "MeasureConfig",
    "ModelConfig",
    "ModelSource",
    "OptimConfig",
    "PretrainData",
    "ProbeConfig",
    "QuestionSet",
    "ResamplerConfig",
    "RetrievalConfig",
    "RunConfig",
    "SegmentationConfig",
    "SegmentationData",
    "SlideConfig",
    "SourceConfig",
    "StudyConfig",
    "TableColumns",
    "TaskConfig",
    "TokenizerConfig",
    "TrainConfig",
    "Triple",
    "TritonConfig",
    "UperNetConfig",
    "VisionLanguageConfig",
    "VisionLanguageData",
    "WatchConfig",
    "encoder_spec",
    "load_config",
    "read_config",
    "shipped_configs",
]
