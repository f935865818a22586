"""A trained detector as a torch module, for export."""

from __future__ import annotations

import torch

from ehm.backends.torch.export.detector_graph import DetectorGraph
from ehm.backends.torch.models.pyramid import fix_size
from ehm.backends.torch.models.rcnn import build_rcnn
from ehm.config import DetectionConfig
from ehm.errors import ConfigError
from ehm.models.pyramid import STRIDES
from ehm.models.weights import Weights

__all__ = ["load_detector"]


def load_detector(weights: Weights, image_size: tuple[int, int] | None = None) -> tuple[DetectorGraph, DetectionConfig]:
    """Load the detector whose checkpoint was opened as ``weights``, and its configuration.

    It takes images of ``image_size`` = (H, W), multiples of 32. Left out, that is the smallest such size in which
    images lie that are wider than high, or the encoder's only one. Raises ConfigError for another size.
    """
    assert weights.checkpoint is not None
    metadata = weights.checkpoint.metadata
    config = DetectionConfig.model_validate(metadata["config"])
    encoder = config.model.model_copy(update={"init": weights.provenance.origin, "drop_path": 0.0})
    network, _, own = build_rcnn(config.model_copy(update={"model": encoder}), len(metadata["classes"]), weights)
    network.load_state_dict({name: torch.from_numpy(array) for name, array in weights.checkpoint.model.items()})
    size = image_size or (_round_up(own[0]), _round_up(own[1]))
    pyramid = network.backbone.pyramid
    if any(side % STRIDES[-1] for side in size) or not (pyramid.any_size or size == own):
        wanted = f"two multiples of {STRIDES[-1]}" if pyramid.any_size else f"{list(own)}, which its encoder takes"
        raise ConfigError(f"model.image_size {list(size)}: of this detector it should be {wanted}")
    fix_size(pyramid, size)
    return DetectorGraph(network.eval().requires_grad_(False), size).eval(), config


def _round_up(side: int) -> int:
    """Return the next multiple of the widest stride."""
    return -(-side // STRIDES[-1]) * STRIDES[-1]
