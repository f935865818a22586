"""A trained model on its way into a bundle: what the export asks of it, and what differs between models.

The pipeline in `ehm.deploy.export.pipeline` is the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ehm.config import ExportConfig, SegmentationConfig
from ehm.config.inputs import InputSpec
from ehm.deploy.bundle.manifest import Parity, Preprocessing, Target, Task, Windows
from ehm.deploy.export.parity import compare_outputs
from ehm.errors import ConfigError
from ehm.models.trained import Reference
from ehm.storage.checkpoint import open_checkpoint

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime import InferenceSession

    from ehm.backends.torch.export.module import Module
    from ehm.models.trained import Trained

__all__ = ["Exportable", "ImageExportable", "ModelFacts", "SegmenterExportable"]

_WINDOWED = ("preprocessing", "int8", "float16")
"""Keys that do not go with an image that is cut into windows: the graph sees one, and photographs measure it."""


@dataclass(frozen=True)
class ModelFacts:
    """The facts of a trained model that its manifest names, and ``notes`` for the user about what was assumed."""

    task: Task
    kind: str
    origin: str
    sha256: str
    labels: tuple[str, ...]
    image_size: tuple[int, int]
    inputs: InputSpec
    outputs: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def from_model(cls, model: Trained | Module) -> ModelFacts:
        """Collect the facts of a model that was opened."""
        return cls(
            task=model.task,
            kind=model.kind,
            origin=model.origin,
            sha256=model.sha256,
            labels=model.labels,
            image_size=model.image_size,
            inputs=model.inputs,
            outputs=model.outputs,
            notes=model.notes,
        )


class Exportable(ABC):
    """A trained model that can become a bundle. ``packages`` took part, besides onnx and ONNX Runtime."""

    about: ModelFacts
    packages: tuple[str, ...]

    @abstractmethod
    def make_graph(self, config: ExportConfig) -> ModelProto:
        """Return the network as an ONNX graph of normalised images (B, 3, H, W)."""

    @abstractmethod
    def compare(self, session: InferenceSession, preprocessing: Preprocessing) -> Parity:
        """Compare the exported file with the framework; raises ExportError if they differ by more than is allowed."""

    def choose_target(self, config: ExportConfig) -> Target:
        """Return the target that the graph is written for."""
        return config.target

    def choose_opset(self, config: ExportConfig) -> int:
        """Return the operator set that the graph is asked for."""
        return config.opset

    def smallest_side(self, config: ExportConfig) -> int | None:
        """Return the least number of pixels of an input of any size; None if it has one size, or it is not known."""
        return None

    def manifest_rules(self) -> dict[str, Any]:
        """Return the sections of the manifest that only this kind of model has."""
        return {}


@dataclass(frozen=True)
class ImageExportable(Exportable):
    """A network of batches of images.

    ``make`` writes its graph as the settings say, and ``reference`` is what that is compared with. ``fuses`` tells that
    ONNX Runtime has operators of its own for the graph; ``patch_size`` is that of a plain ViT.
    """

    about: ModelFacts
    make: Callable[[ExportConfig], ModelProto]
    reference: Reference
    packages: tuple[str, ...]
    fuses: bool
    patch_size: int | None = None

    def make_graph(self, config: ExportConfig) -> ModelProto:
        """Return the network as an ONNX graph; see `Exportable.make_graph`."""
        return self.make(config)

    def compare(self, session: InferenceSession, preprocessing: Preprocessing) -> Parity:
        """Compare the exported file with the framework; see `Exportable.compare`."""
        return compare_outputs(self.reference, session, preprocessing)

    def choose_target(self, config: ExportConfig) -> Target:
        """Return the target: what torch writes for ONNX Runtime is the portable graph."""
        if config.target == "onnxruntime" and not self.fuses:
            return "portable"
        return config.target

    def smallest_side(self, config: ExportConfig) -> int | None:
        """Return the patch size of a plain ViT: no other model takes images of any size."""
        return self.patch_size if config.dynamic_size else None


@dataclass(frozen=True)
class SegmenterExportable(ImageExportable):
    """A segmenter, which sees an image in windows."""

    def make_graph(self, config: ExportConfig) -> ModelProto:
        """Return the network as an ONNX graph; raises ConfigError for a key that does not go with windows."""
        for key in _WINDOWED:
            if getattr(config, key):
                raise ConfigError(f"{key}: {self.about.origin} is a segmenter, which is exported without; leave it out")
        return super().make_graph(config)

    def manifest_rules(self) -> dict[str, Any]:
        """Return the windows by which the checkpoint was measured.

        They are of the same scale, and a window has the same share in common with the next.
        """
        settings = SegmentationConfig.model_validate(open_checkpoint(self.about.origin).metadata["config"])
        stride = []
        for size, step, side in zip(self.about.image_size, settings.stride, settings.crop_size, strict=True):
            stride.append(max(1, size * step // side))
        return {"windows": Windows(scale=settings.data.scale, stride=(stride[0], stride[1]))}
