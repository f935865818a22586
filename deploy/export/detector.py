"""A detector on its way into a bundle: one image of one size at a time, compared with torchvision's own computation.

Shapes: K objects.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ehm.config import DetectionConfig, ExportConfig, ModelSource
from ehm.deploy.bundle.manifest import Fit, Parity, ParityCase, Preprocessing, Task
from ehm.deploy.export.exportable import Exportable
from ehm.deploy.export.parity import TOLERANCE, record_parity
from ehm.deploy.export.sources import require_packages
from ehm.deploy.predict.parity_images import ImageKind, draw_images
from ehm.errors import ConfigError, ExportError
from ehm.models.opening import open_model
from ehm.models.weights import Provenance
from ehm.storage.checkpoint import Checkpoint, find_checkpoint

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime import InferenceSession

__all__ = ["DetectorExportable", "check_detector_config", "compare_detector", "is_detector", "open_detector"]

_PACKAGES = ("torch", "torchvision", "timm", "onnxscript")
_OPSET = 18
"""The operator set that torch's exporter writes; a detector's is not lowered."""
_TOLERANCE = 1e-3
"""Largest accepted difference of scores, masks, and boxes in sides of the image."""
_LEAST_SHARE = 0.9
"""Share of objects that both have to find. If two scores are equal within rounding, either box may go."""
_UNFIT_KEYS = ("preprocessing", "dynamic_size", "int8")


@dataclass(frozen=True)
class DetectorExportable(Exportable):
    """A detector, whose ``graph`` computes in tensors of constant shapes; ``settings`` are those of its training."""

    provenance: Provenance
    image_size: tuple[int, int]
    outputs: tuple[str, ...]
    graph: Any
    settings: DetectionConfig
    checkpoint: Checkpoint | None
    packages: tuple[str, ...] = _PACKAGES

    @property
    def task(self) -> Task:
        """The task that the network solves."""
        return "detection"

    def make_graph(self, config: ExportConfig) -> ModelProto:
        """Return the network as an ONNX graph of one image; see `Exportable.make_graph`."""
        from ehm.deploy.export.graphs.torch_export import make_onnx

        return make_onnx(self.graph, _OPSET, image_size=self.graph.image_size, outputs=self.graph.outputs, batch=1)

    def compare(self, session: InferenceSession, preprocessing: Preprocessing, tolerance: float = TOLERANCE) -> Parity:
        """Compare the exported file with torchvision, within a tolerance of its own; see `Exportable.compare`."""
        return compare_detector(self.graph, session)

    def choose_opset(self, config: ExportConfig) -> int:
        """Return the one operator set of detectors."""
        return _OPSET

    def describe_manifest_rules(self) -> dict[str, Any]:
        """Return the rule by which images are fitted into the input, and the score of objects that count."""
        # training draws from several sizes; the last one is that of evaluation
        shorter = self.settings.min_size[-1]
        longer = self.settings.max_size
        if not self.graph.model.backbone.pyramid.any_size:
            shorter, longer = self.graph.image_size  # a square, which images fill
        return {"fit": Fit(shorter=shorter, longer=longer, threshold=self.settings.score_threshold)}


def is_detector(path: str | Path) -> bool:
    """Return whether a detector's run or checkpoint lies at ``path``."""
    checkpoint = find_checkpoint(path)
    return checkpoint is not None and checkpoint.kind == "detector"


def check_detector_config(config: ExportConfig) -> None:
    """Raise ConfigError for a key that a detector's bundle cannot follow, BackendError if a package is missing."""
    changed = [key for key in _UNFIT_KEYS if getattr(config, key)]
    # the target is named first, as the flag that users know
    if config.target != "portable":
        changed.insert(0, "target")
    if changed:
        raise ConfigError(f"{changed[0]}: a detector is written in floats for one size, target portable; leave it out")
    require_packages("torch,export,tasks", *_PACKAGES, "onnx", "onnxruntime")


def open_detector(source: ModelSource) -> DetectorExportable:
    """Load the detector of a run or checkpoint; ``source.image_size`` is the size that images are fitted into."""
    from ehm.backends.torch.export.detector_module import load_detector
    from ehm.backends.torch.models.torch_file import read_arrays

    weights = open_model(source, read_arrays)
    assert weights.checkpoint is not None
    graph, settings = load_detector(weights, source.image_size)
    provenance = replace(weights.provenance, labels=tuple(weights.checkpoint.metadata["classes"]))
    outputs = tuple(graph.outputs)
    return DetectorExportable(provenance, graph.image_size, outputs, graph, settings, weights.checkpoint)


def compare_detector(graph: Any, session: InferenceSession) -> Parity:
    """Compare ONNX Runtime with torchvision's own path, at this size; raises ExportError if they differ."""
    import torch

    graph.model.roi_heads.score_thresh = 0.0  # as in the graph, which keeps objects of every score
    side = max(graph.image_size)
    cases = []
    for kind, values in draw_images(np.random.default_rng(0), 1, graph.image_size):
        images = values.astype(np.float32)
        expected = _run_torchvision(graph, images)
        found = dict(zip(graph.outputs, session.run(list(graph.outputs), {"images": images}), strict=True))
        cases.append(_compare_case(kind, expected, found, side))
    worst = max(cases, key=lambda case: case.max_abs)
    if not worst.max_abs <= _TOLERANCE:  # not a number is refused too
        raise ExportError(
            f"parity: the exported model differs from torchvision by {worst.max_abs:.2g} on {worst.images} images, and "
            f"at most {_TOLERANCE:g} is allowed; nothing was written"
        )
    reference = f"torchvision {version('torchvision')}, torch {torch.__version__}, cpu, float32"
    return record_parity(cases, reference, session, _TOLERANCE)


def _run_torchvision(graph: Any, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Return torchvision's objects of one image (1, 3, H, W), with labels from 0 on as in the graph."""
    import torch
    from torchvision.models.detection.image_list import ImageList

    model = graph.model
    size = graph.image_size
    with torch.inference_mode():
        tensor = torch.from_numpy(images)
        maps = model.backbone(tensor)
        proposals, _ = model.rpn(ImageList(tensor, [size]), maps)
        (objects,), _ = model.roi_heads(maps, proposals, [size])
    expected = {name: value.numpy() for name, value in objects.items()}
    expected["labels"] = expected["labels"] - 1  # its label 0 is the background
    return expected


def _compare_case(
    kind: ImageKind, expected: dict[str, NDArray[Any]], found: dict[str, NDArray[Any]], side: int
) -> ParityCase:
    """Return the largest difference of scores, masks and boxes (in longer sides) of the objects that both found."""
    expected_indices = []
    found_indices = []
    count = len(expected["scores"])
    for index in range(count):
        # the order of objects with nearly equal scores may differ
        same = _find_object(index, expected, found, side)
        if same is not None:
            expected_indices.append(index)
            found_indices.append(same)
    if len(expected_indices) < _LEAST_SHARE * count:
        raise ExportError(
            f"parity: of {count} objects that torchvision finds in {kind} images the exported model "
            f"finds {len(expected_indices)}; nothing was written"
        )
    differences = [0.0]
    cosines = [1.0]
    for name, scale in {"boxes": side, "scores": 1, "masks": 1}.items():
        if name in found and expected_indices:
            theirs = expected[name][expected_indices].ravel() / scale
            ours = found[name][found_indices].ravel() / scale
            differences.append(float(np.abs(theirs - ours).max()))
            norms = float(np.linalg.norm(theirs) * np.linalg.norm(ours))
            cosines.append(float(theirs @ ours / max(norms, 1e-30)))
    return ParityCase(images=kind, batch=1, max_abs=max(differences), cosine=min(cosines))


def _find_object(
    index: int, expected: dict[str, NDArray[Any]], found: dict[str, NDArray[Any]], side: int
) -> int | None:
    """Return the index in ``found`` of object ``index`` of ``expected``; None if it is not there."""
    # an object is the same if box, score and label agree
    near = np.abs(found["boxes"] - expected["boxes"][index]).max(axis=1) / side < _TOLERANCE
    near &= np.abs(found["scores"] - expected["scores"][index]) < _TOLERANCE
    near &= found["labels"] == expected["labels"][index]
    return int(near.argmax()) if near.any() else None
