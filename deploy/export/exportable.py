"""A trained model on its way into a bundle: what the export asks of it, and what differs between models.

The pipeline in `ehm.deploy.export.pipeline` is the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ehm.config import ExportConfig, SegmentationConfig, VisionLanguageConfig
from ehm.deploy.bundle.manifest import Language, Parity, Preprocessing, Target, Task, Windows
from ehm.deploy.export.parity import TOLERANCE, compare_outputs
from ehm.errors import ConfigError
from ehm.models.heads import Reference
from ehm.models.weights import Provenance
from ehm.storage.checkpoint import Checkpoint
from ehm.storage.names import escape_undecodable

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime import InferenceSession

__all__ = ["Exportable", "EyesExportable", "ImageExportable", "SegmenterExportable"]


class Exportable(ABC):
    """A trained model that can become a bundle.

    ``provenance`` has the labels of its classes, and ``outputs`` are the names of what it gives. ``checkpoint`` is what
    was opened, if it was one. ``packages`` took part, besides onnx and ONNX Runtime.
    """

    provenance: Provenance
    image_size: tuple[int, int]
    outputs: tuple[str, ...]
    packages: tuple[str, ...]
    checkpoint: Checkpoint | None

    @property
    @abstractmethod
    def task(self) -> Task:
        """The task that the network solves."""

    @abstractmethod
    def make_graph(self, config: ExportConfig) -> ModelProto:
        """Return the network as an ONNX graph of normalised images (B, 3, H, W)."""

    @abstractmethod
    def compare(self, session: InferenceSession, preprocessing: Preprocessing, tolerance: float = TOLERANCE) -> Parity:
        """Compare the exported file with the framework; raises ExportError if they differ more."""

    def choose_target(self, config: ExportConfig) -> Target:
        """Return the target that the graph is written for."""
        return config.target

    def choose_opset(self, config: ExportConfig) -> int:
        """Return the operator set that the graph is asked for."""
        return config.opset

    def find_smallest_side(self, config: ExportConfig) -> int | None:
        """Return the least number of pixels of an input of any size; None if it has one size, or it is not known."""
        return None

    def describe_manifest_rules(self) -> dict[str, Any]:
        """Return the sections of the manifest that only this kind of model has."""
        return {}


@dataclass(frozen=True)
class ImageExportable(Exportable):
    """A network of batches of images.

    ``make`` writes its graph as the settings say, and ``reference`` is what that is compared with. ``fuses`` tells that
    ONNX Runtime has operators of its own for the graph; ``patch_size`` is that of a ViT whose images may have any size.
    """

    provenance: Provenance
    image_size: tuple[int, int]
    outputs: tuple[str, ...]
    make: Callable[[ExportConfig], ModelProto]
    reference: Reference
    packages: tuple[str, ...]
    checkpoint: Checkpoint | None = None
    fuses: bool = False
    patch_size: int | None = None

    @property
    def task(self) -> Task:
        """The task that the network solves: it classifies images if it has labels for them."""
        if not self.provenance.labels:
            return "features"
        return "multi_label" if self.provenance.thresholds else "classification"

    def make_graph(self, config: ExportConfig) -> ModelProto:
        """Return the network as an ONNX graph; see `Exportable.make_graph`."""
        return self.make(config)

    def compare(self, session: InferenceSession, preprocessing: Preprocessing, tolerance: float = TOLERANCE) -> Parity:
        """Compare the exported file with the framework; see `Exportable.compare`."""
        return compare_outputs(self.reference, session, preprocessing, tolerance)

    def describe_manifest_rules(self) -> dict[str, Any]:
        """Return the thresholds of a classifier whose images have several labels."""
        return {"thresholds": self.provenance.thresholds} if self.task == "multi_label" else {}

    def choose_target(self, config: ExportConfig) -> Target:
        """Return the target: without an operator of ONNX Runtime's own, the graph for it is the portable one."""
        # the manifest should name the graph that is there, not the one that was wished for
        if config.target == "onnxruntime" and not self.fuses:
            return "portable"
        return config.target

    def find_smallest_side(self, config: ExportConfig) -> int | None:
        """Return the patch size of a ViT whose positions are resampled: no other model takes images of any size."""
        return self.patch_size if config.dynamic_size else None


@dataclass(frozen=True)
class SegmenterExportable(ImageExportable):
    """A segmenter, which sees an image in windows."""

    @property
    def task(self) -> Task:
        """The task that the network solves."""
        return "segmentation"

    def make_graph(self, config: ExportConfig) -> ModelProto:
        """Return the network as an ONNX graph; raises ConfigError for preprocessing: the graph sees one window."""
        # refused when the graph is made, before anything is written
        if config.preprocessing:
            origin = self.provenance.origin
            raise ConfigError(f"preprocessing: {origin} is a segmenter, which is exported without; leave it out")
        return super().make_graph(config)

    def describe_manifest_rules(self) -> dict[str, Any]:
        """Return the windows by which the checkpoint was measured.

        They are of the same scale, and a window has the same share in common with the next.
        """
        assert self.checkpoint is not None
        settings = SegmentationConfig.model_validate(self.checkpoint.metadata["config"])
        stride = []
        for size, step, side in zip(self.image_size, settings.stride, settings.crop_size, strict=True):
            # an export may take another size of window than training; the overlap stays the same
            stride.append(max(1, size * step // side))
        return {"windows": Windows(scale=settings.data.scale, stride=(stride[0], stride[1]))}


@dataclass(frozen=True)
class EyesExportable(ImageExportable):
    """The eyes of a language model: encoder, resampler and projection."""

    @property
    def task(self) -> Task:
        """The task that the network solves."""
        return "visual_tokens"

    def describe_manifest_rules(self) -> dict[str, Any]:
        """Return which language model reads the visual tokens, and the words around them."""
        assert self.checkpoint is not None
        described = self.checkpoint.metadata["language"]
        words = VisionLanguageConfig.model_validate(self.checkpoint.metadata["config"]).language
        return {
            "language": Language(
                source=escape_undecodable(Path(described["source"]).name),
                model_type=described["model_type"],
                width=described["width"],
                weights=described["weights"],
                before=words.before,
                after=words.after,
                prompt=words.prompt,
                chat=words.chat,
            )
        }
