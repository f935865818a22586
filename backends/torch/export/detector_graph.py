"""torchvision's Faster and Mask R-CNN for one image of one size, in tensors whose shapes do not depend on the image.

torch.onnx follows no other ones. The arithmetic is torchvision's; where it drops boxes, here they get a score that
loses, and where it takes those that are left, here the K best are taken.

Shapes: N boxes, K objects at most; D features; C classes without the background.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import nms, roi_align

from ehm.backends.torch.models.pyramid import STRIDES

__all__ = ["OUTPUTS", "DetectorGraph"]

OUTPUTS = ("boxes", "labels", "scores", "masks")
_LOST = -1e30
"""The score of a box that is out: below all logits."""
_CANDIDATES = 1000
"""Boxes of one level, of all levels, and pairs of box and class that go on to the next step."""
_PROPOSAL_SIDE, _OBJECT_SIDE = 1e-3, 1e-2
"""Pixels that a side has at least: torchvision's."""
_CANONICAL_SIDE, _CANONICAL_LEVEL = 224.0, 4.0
"""An object of this side is seen on the map of stride 2 ** 4 (Lin et al., 2017, equation 1)."""


class DetectorGraph(nn.Module):
    """Normalised (1, 3, H, W) -> ``boxes`` (K, 4) in pixels, ``labels`` (K,) from 0 on, ``scores`` (K,), ``masks``.

    The likeliest first; a score of 0 is no object. ``masks`` (K, 28, 28) are probabilities inside each box; a model
    without a mask head leaves them out. No score is too low: who asks says what counts.
    """

    def __init__(self, model: Any, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        self.image_size = image_size
        with torch.no_grad():
            blank = torch.zeros(1, 3, *image_size)
            maps = list(model.backbone(blank).values())
            (anchors,) = model.rpn.anchor_generator(ImageList(blank, [image_size]), maps)
        self.register_buffer("anchors", anchors)
        ratios = model.rpn.head.cls_logits.out_channels
        self.counts = [ratios * values.shape[2] * values.shape[3] for values in maps]
        self.outputs = OUTPUTS if model.roi_heads.has_mask() else OUTPUTS[:3]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        maps = list(self.model.backbone(images).values())
        proposals, valid = self._propose(maps)
        boxes, labels, scores = self._classify(maps[: len(STRIDES)], proposals, valid)
        if len(self.outputs) < len(OUTPUTS):
            return boxes, labels, scores
        heads = self.model.roi_heads
        logits = heads.mask_predictor(heads.mask_head(_pool_regions(heads.mask_roi_pool, maps[: len(STRIDES)], boxes)))
        return boxes, labels, scores, logits[torch.arange(len(boxes)), labels + 1].sigmoid()

    def _propose(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Boxes (N, 4) that may hold an object, and which of them are meant (N,)."""
        rpn = self.model.rpn
        logits, deltas = rpn.head(maps)
        scores = torch.cat([values[0].permute(1, 2, 0).reshape(-1) for values in logits])
        moves = torch.cat([values[0].unflatten(0, (-1, 4)).permute(2, 3, 0, 1).reshape(-1, 4) for values in deltas])
        chosen, levels, first = [], [], 0
        for level, count in enumerate(self.counts):
            best = min(_CANDIDATES, count)
            chosen.append(scores[first : first + count].topk(best).indices + first)
            levels.append(torch.full((best,), level))
            first += count
        index = torch.cat(chosen)
        boxes = self._clip(rpn.box_coder.decode_single(moves, self.anchors)[index])
        # logits, in the order of their sigmoids, which a runtime may round to equal ones
        scores = torch.where(_at_least(boxes, _PROPOSAL_SIDE), scores[index], _LOST)
        best_scores, order = self._suppress(boxes, scores, torch.cat(levels), rpn.nms_thresh, _CANDIDATES)
        return boxes[order], best_scores > _LOST / 2

    def _classify(self, maps: list[Tensor], proposals: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (K, 4), labels (K,) and scores (K,) of objects."""
        heads = self.model.roi_heads
        logits, moves = heads.box_predictor(heads.box_head(_pool_regions(heads.box_roi_pool, maps, proposals)))
        classes = logits.shape[1] - 1
        boxes = heads.box_coder.decode_single(moves, proposals).unflatten(1, (-1, 4))[:, 1:].reshape(-1, 4)
        boxes, scores = self._clip(boxes), logits.softmax(-1)[:, 1:].reshape(-1)
        labels = torch.arange(classes).repeat(len(proposals))
        meant = valid.repeat_interleave(classes) & _at_least(boxes, _OBJECT_SIDE)
        scores, index = torch.where(meant, scores, _LOST).topk(min(_CANDIDATES, len(labels)))
        boxes, labels = boxes[index], labels[index]
        scores, order = self._suppress(boxes, scores, labels, heads.nms_thresh, heads.detections_per_img)
        return boxes[order], labels[order], scores.clamp(min=0)

    def _suppress(
        self, boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, count: int
    ) -> tuple[Tensor, Tensor]:
        """Scores and indices of the ``count`` best boxes that are no doubles of a better one in their group."""
        apart = groups.to(boxes) * (max(self.image_size) + 1.0)  # boxes of two groups never touch
        kept = nms(boxes + apart[:, None], scores, threshold)
        meant = torch.zeros_like(scores).index_fill(0, kept, 1.0) > 0
        best: tuple[Tensor, Tensor] = torch.where(meant, scores, _LOST).topk(min(count, len(scores)))
        return best

    def _clip(self, boxes: Tensor) -> Tensor:
        height, width = self.image_size
        across, down = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
        return torch.stack([across[:, 0], down[:, 0], across[:, 1], down[:, 1]], dim=1)


def _at_least(boxes: Tensor, side: float) -> Tensor:
    sides = boxes[:, 2:] - boxes[:, :2]
    return (sides[:, 0] >= side) & (sides[:, 1] >= side)


def _pool_regions(pooler: Any, maps: list[Tensor], boxes: Tensor) -> Tensor:
    """What ``boxes`` (N, 4) hold on the map that suits their size: (N, D, side, side). All maps are read."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    level = torch.floor(_CANONICAL_LEVEL + torch.log2(area.sqrt() / _CANONICAL_SIDE) + 1e-6)
    level = level.clamp(2, 1 + len(maps)) - 2
    regions = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], dim=1)
    found = [
        roi_align(values, regions, pooler.output_size, 1 / stride, pooler.sampling_ratio)
        for values, stride in zip(maps, STRIDES, strict=True)
    ]
    chosen = found[0]
    for index, values in enumerate(found):
        chosen = torch.where((level == index)[:, None, None, None], values, chosen)
    return chosen
