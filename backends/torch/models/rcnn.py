"""Torchvision's Mask R-CNN (He et al., 2017) and Faster R-CNN on the maps of any encoder.

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

from ehm.backends.torch.models.pyramid import Pyramid, load_pyramid
from ehm.config import DetectionConfig
from ehm.errors import ConfigError
from ehm.models.pyramid import STRIDES, list_ends_of_quarters
from ehm.models.weights import LoadedModel, Weights

__all__ = ["Backbone", "build_rcnn"]

_RATIOS = (0.5, 1.0, 2.0)
_POOL = 7
"""Side of the region of an object that the box head takes, in cells."""


class Backbone(nn.Module):
    """Normalised (B, 3, H, W) -> maps (B, D, H / s, W / s) at strides 4, 8, 16, 32 and 64, named 0 to 3 and pool.

    The maps are float32 whatever the encoder computes in: RoIAlign and NMS take boxes and maps of one type.
    """

    def __init__(self, pyramid: Pyramid, width: int) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.fpn = FeaturePyramidNetwork(list(pyramid.channels), width, extra_blocks=LastLevelMaxPool())
        self.out_channels = width

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """See the class."""
        maps: OrderedDict[str, Tensor] = OrderedDict()
        for level, value in enumerate(self.pyramid(images)):
            maps[str(level)] = value
        outputs: OrderedDict[str, Tensor] = self.fpn(maps)
        for name in outputs:
            outputs[name] = outputs[name].float()
        return outputs


def build_rcnn(
    config: DetectionConfig, classes: int, weights: Weights | None = None
) -> tuple[Any, LoadedModel, tuple[int, int]]:
    """Build the detector of ``config`` for C ``classes``; return it, its loaded encoder, and the images' size (H, W).

    The detector takes lists of normalised images (3, H, W), of any sizes, and in training targets as torchvision's
    does. The maps of a ViT are the outputs of its four quarters. Raises as ``load_pyramid`` does, and ConfigError if an
    encoder takes one size only that is no square of a multiple of 32 pixels.
    """
    pyramid, loaded = load_pyramid(config.model, taps=list_ends_of_quarters, weights=weights)
    resizing, size = _build_resizing(config, pyramid.any_size, loaded.image_size)
    width = config.width
    backbone = Backbone(pyramid, width)
    # one size of anchors on each level
    anchors = AnchorGenerator(tuple(zip(config.anchor_sizes, strict=True)), (_RATIOS,) * len(config.anchor_sizes))
    options: dict[str, Any] = {
        "rpn_anchor_generator": anchors,
        "rpn_head": _RPNHead(width, len(_RATIOS)),
        "box_head": TwoMLPHead(width * _POOL**2, 4 * width),
        # and the background
        "box_predictor": _BoxPredictor(4 * width, classes + 1),
        "box_batch_size_per_image": config.proposals,
        "box_score_thresh": config.score_threshold,
        "box_detections_per_img": config.detections,
        "image_mean": (0.0, 0.0, 0.0),  # images come normalised
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
    """Return torchvision's arguments on how images are resized and padded, and the largest size (H, W) that results."""
    if any_size:
        arguments = {"min_size": config.min_size, "max_size": config.max_size}
        return arguments, (config.min_size[-1], config.max_size)
    height, width = fixed
    if height != width or height % STRIDES[-1]:
        raise ConfigError(
            f"model.image_size {list(fixed)}: this encoder takes images of one size, which should be a square of a "
            f"multiple of {STRIDES[-1]} pixels"
        )
    return {"min_size": height, "max_size": height, "size_divisible": height}, fixed


class _RPNHead(RPNHead):
    """Torchvision's head with float32 outputs, the type of the boxes that its scores are sorted with."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        scores, deltas = super().forward(x)
        return [score.float() for score in scores], [delta.float() for delta in deltas]


class _BoxPredictor(FastRCNNPredictor):
    """Torchvision's predictor with float32 outputs, the type of the boxes that its scores are sorted with."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, deltas = super().forward(x)
        return scores.float(), deltas.float()
