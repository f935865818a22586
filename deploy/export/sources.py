"""What can be exported, and how: our own plain ViTs from their arrays, with any framework; the rest by torch."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from ehm.config import ExportConfig, ModelSource
from ehm.deploy.export.exportable import ImageExportable, ModelFacts, SegmenterExportable
from ehm.errors import BackendError, ConfigError
from ehm.models.trained import Head, open_trained
from ehm.models.weights import ReadFile, read_safetensors

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["demand", "prepare"]


def prepare(source: ModelSource, head: Head) -> ImageExportable:
    """The model that ``source.init`` names; ``head`` as in :func:`ehm.models.trained.open_trained`, with its errors.

    BackendError where no framework is there to compare with, or a model that torch writes lacks what builds it.
    """
    framework = _framework()
    read_file: ReadFile = read_safetensors
    if framework == "torch":
        from ehm.backends.torch.models.loading import read_arrays as read_file
    trained = open_trained(source, head, read_file)
    if trained is None:
        return _by_torch(source, head)
    if framework is None:
        raise BackendError(
            "ehm export compares the file with what a framework computes, and neither torch nor MindSpore is there; "
            "pip install 'ehm[torch]' or 'ehm[mindspore]' installs one"
        )
    from ehm.deploy.export.graphs.vit import make_vit

    reference = import_module(f"ehm.backends.{framework}.export.module").reference(trained)

    def make(config: ExportConfig) -> ModelProto:
        return make_vit(trained, config.opset, config.target, config.dynamic_size)

    facts = ModelFacts.from_model(trained)
    packages = _FRAMEWORKS[framework]
    return ImageExportable(facts, make, reference, packages, fuses=True, patch_size=trained.spec.patch_size)


def demand(extras: str, *packages: str) -> None:
    """BackendError that names those of ``packages`` that are not installed, and the extras of ehm that bring them.

    And a framework, where there is none and ``packages`` name none: it would be missed next.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if not missing:
        return
    ways = [extras]
    if "torch" not in packages and _framework() is None:
        missing.append("torch or MindSpore")
        ways = [f"{framework},{extras}" for framework in _FRAMEWORKS]
    commands = " or ".join(f"pip install 'ehm[{way}]'" for way in ways)
    raise BackendError(f"ehm export needs {', '.join(missing)}; {commands} installs what is missing")


def _framework() -> str | None:
    return next((name for name, packages in _FRAMEWORKS.items() if all(map(find_spec, packages))), None)


def _by_torch(source: ModelSource, head: Head) -> ImageExportable:
    packages = ("torch", "timm", "onnxscript")
    demand("torch,export", *packages)
    from ehm.backends.torch.export.module import compute, load_module
    from ehm.deploy.export.graphs.torch_export import make_onnx

    loaded = load_module(source, head)
    heads = loaded.network()
    reference = compute(heads)
    reference[0](np.zeros((1, 3, *loaded.image_size), np.float32))  # what it cannot give is said before torch.onnx

    def make(config: ExportConfig) -> ModelProto:
        if config.dynamic_size:
            raise ConfigError(
                f"dynamic_size: {loaded.origin} is no plain ViT of ours, whose positions the graph could resample; "
                "leave it out"
            )
        return make_onnx(
            heads,
            config.opset,
            image_size=loaded.image_size,
            outputs=loaded.outputs,
            raise_opset="opset" not in config.model_fields_set,  # unless it was asked for
        )

    kind = SegmenterExportable if loaded.task == "segmentation" else ImageExportable
    return kind(ModelFacts.from_model(loaded), make, reference, packages, fuses=False)


_FRAMEWORKS = {"torch": ("torch", "timm"), "mindspore": ("mindspore",)}
"""Frameworks that a file can be compared with, by their backends, and the packages that they take."""
