"""Typed configuration: YAML in, validated objects out, every error at once with the file and the key that caused it.

A configuration is a YAML file (a path, or the name of one shipped in ``configs/``) plus ``--set key=value`` overrides
with dotted keys. Unknown keys are errors. Nothing here imports a framework.
"""

from ehm.config.loading import load_config, read_config, shipped_configs
from ehm.config.sections import (
    AscendConfig,
    CalibrationConfig,
    DataConfig,
    ExportConfig,
    MaskConfig,
    ModelConfig,
    ModelSource,
    OptimConfig,
    RunConfig,
    TokenizerConfig,
    TrainConfig,
    Triple,
    TritonConfig,
)
from ehm.config.specs import encoder_spec
from ehm.config.tasks import (
    TASKS,
    AugmentConfig,
    DetectionConfig,
    FinetuneConfig,
    ProbeConfig,
    RetrievalConfig,
    TaskConfig,
)

__all__ = [
    "TASKS",
    "AscendConfig",
    "AugmentConfig",
    "CalibrationConfig",
    "DataConfig",
    "DetectionConfig",
    "ExportConfig",
    "FinetuneConfig",
    "MaskConfig",
    "ModelConfig",
    "ModelSource",
    "OptimConfig",
    "ProbeConfig",
    "RetrievalConfig",
    "RunConfig",
    "TaskConfig",
    "TokenizerConfig",
    "TrainConfig",
    "Triple",
    "TritonConfig",
    "encoder_spec",
    "load_config",
    "read_config",
    "shipped_configs",
]
