"""Mask R-CNN (He et al., 2017) of torchvision, and Faster R-CNN, on any encoder's maps.

Shapes: B images; D features of the pyramid; C classes, numbered from 1: 0 is the background.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from ehm.backends.torch.models.pyramid import STRIDES, Pyramid, last_of_quarters, load_pyramid
from ehm.config import DetectionConfig
from ehm.errors import ConfigError
from ehm.models.weights import LoadedModel, Weights

__all__ = ["Backbone", "build_rcnn"]

_RATIOS = (0.5, 1.0, 2.0)
_POOL = 7
"""Side of what the box head sees of an object, in cells of the map."""


class Backbone(nn.Module):
    """Normalised (B, 3, H, W) -> maps (B, D, H / s, W / s) at strides 4, 8, 16, 32 and 64, named 0 to 3 and pool.

    float32, whatever the encoder computes in: RoIAlign and NMS take boxes and maps of one type.
    """

    def __init__(self, pyramid: Pyramid, width: int) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.fpn = FeaturePyramidNetwork(list(pyramid.channels), width, extra_blocks=LastLevelMaxPool())
        self.out_channels = width

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """See the class."""
        maps = OrderedDict((str(level), value) for level, value in enumerate(self.pyramid(images)))
        return OrderedDict((name, value.float()) for name, value in self.fpn(maps).items())


def build_rcnn(
    config: DetectionConfig, classes: int, weights: Weights | None = None
) -> tuple[Any, LoadedModel, tuple[int, int]]:
    """The detector of ``config`` for C ``classes``, what its encoder was loaded from, and the (H, W) that images get.

    It takes lists of normalised images (3, H, W), of any sizes, and in training targets as torchvision's does. In the
    pyramid a ViT gives what its four quarters leave. Raises as ``load_pyramid`` does, and ConfigError where an encoder
    takes one size only and that is no square of a multiple of 32 pixels.
    """
    pyramid, loaded = load_pyramid(config.model, taps=last_of_quarters, weights=weights)
    resizing, size = _build_resizing(config, pyramid.any_size, loaded.image_size)
    backbone, width = Backbone(pyramid, config.width), config.width
    anchors = AnchorGenerator(tuple((side,) for side in config.anchor_sizes), (_RATIOS,) * len(config.anchor_sizes))
    options: dict[str, Any] = {
        "rpn_anchor_generator": anchors,
        "rpn_head": _RPNHead(width, len(_RATIOS)),
        "box_head": TwoMLPHead(width * _POOL**2, 4 * width),
        "box_predictor": _BoxPredictor(4 * width, classes + 1),
        "box_batch_size_per_image": config.proposals,
        "box_score_thresh": config.score_threshold,
        "box_detections_per_img": config.detections,
        "image_mean": (0.0, 0.0, 0.0),  # they come normalised
        "image_std": (1.0, 1.0, 1.0),
        **resizing,
    }
    if not config.masks:
        return FasterRCNN(backbone, **options), loaded, size
    options["mask_head"] = MaskRCNNHeads(width, (width,) * 4, 1)
    options["mask_predictor"] = MaskRCNNPredictor(width, width, classes + 1)
    return MaskRCNN(backbone, **options), loaded, size


def _build_resizing(
    config: DetectionConfig, any_size: bool, fixed: tuple[int, int]
) -> tuple[dict[str, Any], tuple[int, int]]:
    """How images are resized and padded, and the size that they get at most."""
    if any_size:
        return {"min_size": config.min_size, "max_size": config.max_size}, (config.min_size[-1], config.max_size)
    height, width = fixed
    if height != width or height % STRIDES[-1]:
        raise ConfigError(
            f"model.image_size {list(fixed)}: this encoder takes images of one size, which should be a square of a "
            f"multiple of {STRIDES[-1]} pixels"
        )
    return {"min_size": height, "max_size": height, "size_divisible": height}, fixed


class _RPNHead(RPNHead):
    """In float32 out, as the boxes are that its scores are sorted with."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        scores, deltas = super().forward(x)
        return [score.float() for score in scores], [delta.float() for delta in deltas]


class _BoxPredictor(FastRCNNPredictor):
    """In float32 out, as the boxes are that its scores are sorted with."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, deltas = super().forward(x)
        return scores.float(), deltas.float()
