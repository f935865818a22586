"""torchvision's Faster and Mask R-CNN for one image of one size, in tensors whose shapes do not depend on the image.

torch.onnx follows no others. The arithmetic is torchvision's. Boxes that torchvision drops get a score here that loses;
of the boxes that it keeps, the K best are taken here.

Shapes: N boxes, K objects at most; D features; C classes without the background.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import nms, roi_align

from ehm.models.pyramid import STRIDES

__all__ = ["OUTPUTS", "DetectorGraph"]

OUTPUTS = ("boxes", "labels", "scores", "masks")
_LOST = -1e30
"""The score of a box that is dropped: below all logits."""
_CANDIDATES = 1000
"""Number of boxes of one level, of all levels, and of pairs of box and class that go on to the next step."""
# the least sides in pixels, torchvision's
_PROPOSAL_SIDE = 1e-3
_OBJECT_SIDE = 1e-2
# an object of this side is pooled from the map of stride 2 ** 4 (Lin et al., 2017, equation 1)
_CANONICAL_SIDE = 224.0
_CANONICAL_LEVEL = 4.0


class DetectorGraph(nn.Module):
    """A detector of fixed shapes: normalised (1, 3, H, W) -> ``boxes``, ``labels``, ``scores`` and ``masks``.

    ``boxes`` (K, 4) are in pixels, ``labels`` (K,) count from 0, ``masks`` (K, 28, 28) are probabilities inside each
    box; a model without a mask head leaves them out. Objects are sorted by ``scores`` (K,), and a score of 0 is no
    object. No object is left out for a low score: callers have their own threshold.
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
        proposals, valid = self._propose_boxes(maps)
        # the coarsest map is for proposals alone
        boxes, labels, scores = self._classify_boxes(maps[: len(STRIDES)], proposals, valid)
        if len(self.outputs) < len(OUTPUTS):
            return boxes, labels, scores
        heads = self.model.roi_heads
        regions = _pool_regions(heads.mask_roi_pool, maps[: len(STRIDES)], boxes)
        logits = heads.mask_predictor(heads.mask_head(regions))
        masks = logits[torch.arange(len(boxes)), labels + 1].sigmoid()  # class 0 of the head is the background
        return boxes, labels, scores, masks

    def _propose_boxes(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Compute boxes (N, 4) that may hold an object, and which of them count (N,)."""
        rpn = self.model.rpn
        logits, deltas = rpn.head(maps)
        # in the order of the anchors: by level, row, column and ratio
        scores = torch.cat([values[0].permute(1, 2, 0).reshape(-1) for values in logits])
        moves = torch.cat([values[0].unflatten(0, (-1, 4)).permute(2, 3, 0, 1).reshape(-1, 4) for values in deltas])
        chosen = []
        levels = []
        first = 0
        for level, count in enumerate(self.counts):
            best = min(_CANDIDATES, count)
            chosen.append(scores[first : first + count].topk(best).indices + first)
            levels.append(torch.full((best,), level))
            first += count
        index = torch.cat(chosen)
        boxes = self._clip_boxes(rpn.box_coder.decode_single(moves, self.anchors)[index])
        # sorted by logits instead of their sigmoids, which a runtime may round to equal numbers
        scores = torch.where(_have_sides_of(boxes, _PROPOSAL_SIDE), scores[index], _LOST)
        best_scores, order = self._suppress_doubles(boxes, scores, torch.cat(levels), rpn.nms_thresh, _CANDIDATES)
        return boxes[order], best_scores > _LOST / 2

    def _classify_boxes(self, maps: list[Tensor], proposals: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute boxes (K, 4), labels (K,) and scores (K,) of objects."""
        heads = self.model.roi_heads
        logits, moves = heads.box_predictor(heads.box_head(_pool_regions(heads.box_roi_pool, maps, proposals)))
        classes = logits.shape[1] - 1
        boxes = heads.box_coder.decode_single(moves, proposals).unflatten(1, (-1, 4))[:, 1:].reshape(-1, 4)
        boxes = self._clip_boxes(boxes)
        scores = logits.softmax(-1)[:, 1:].reshape(-1)
        labels = torch.arange(classes).repeat(len(proposals))
        counts = valid.repeat_interleave(classes) & _have_sides_of(boxes, _OBJECT_SIDE)
        scores, index = torch.where(counts, scores, _LOST).topk(min(_CANDIDATES, len(labels)))
        boxes = boxes[index]
        labels = labels[index]
        scores, order = self._suppress_doubles(boxes, scores, labels, heads.nms_thresh, heads.detections_per_img)
        return boxes[order], labels[order], scores.clamp(min=0)

    def _suppress_doubles(
        self, boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, count: int
    ) -> tuple[Tensor, Tensor]:
        """Return scores and indices of the ``count`` best boxes that are no doubles of a better one in their group."""
        # each group moved to a place of its own, so that boxes of two groups never overlap
        offset = groups.to(boxes) * (max(self.image_size) + 1.0)
        kept = nms(boxes + offset[:, None], scores, threshold)
        is_kept = torch.zeros_like(scores).index_fill(0, kept, 1.0) > 0
        best: tuple[Tensor, Tensor] = torch.where(is_kept, scores, _LOST).topk(min(count, len(scores)))
        return best

    def _clip_boxes(self, boxes: Tensor) -> Tensor:
        height, width = self.image_size
        across = boxes[:, 0::2].clamp(0, width)
        down = boxes[:, 1::2].clamp(0, height)
        return torch.stack([across[:, 0], down[:, 0], across[:, 1], down[:, 1]], dim=1)


def _have_sides_of(boxes: Tensor, side: float) -> Tensor:
    sides = boxes[:, 2:] - boxes[:, :2]
    return (sides[:, 0] >= side) & (sides[:, 1] >= side)


def _pool_regions(pooler: Any, maps: list[Tensor], boxes: Tensor) -> Tensor:
    """Pool the regions of ``boxes`` (N, 4) from the map that suits their size: (N, D, side, side)."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    level = torch.floor(_CANONICAL_LEVEL + torch.log2(area.sqrt() / _CANONICAL_SIDE) + 1e-6)
    level = level.clamp(2, 1 + len(maps)) - 2
    regions = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], dim=1)
    # from every map, because a choice of boxes would have a shape that depends on the image
    chosen: Tensor | None = None
    for index, (values, stride) in enumerate(zip(maps, STRIDES, strict=True)):
        pooled = roi_align(values, regions, pooler.output_size, 1 / stride, pooler.sampling_ratio)
        if chosen is None:
            chosen = pooled
        else:
            chosen = torch.where((level == index)[:, None, None, None], pooled, chosen)
    assert chosen is not None
    return chosen
