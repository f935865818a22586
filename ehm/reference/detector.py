"""The losses of Mask R-CNN (He et al., 2017) on a ViT in NumPy and float64, where no sample is left out at random.

Shapes: B images of H x W pixels, D features of the pyramid, n proposals of an image; maps are (B, h, w, D).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ehm.config.encoders import VitSpec
from ehm.reference.boxes import (
    align_regions,
    decode_boxes,
    encode_boxes,
    make_anchors,
    measure_overlap,
    suppress_doubles,
)
from ehm.reference.classifier import take_encoder
from ehm.reference.layers import Floats, Weights, apply_linear
from ehm.reference.losses import compute_log_softmax
from ehm.reference.maps import convolve, convolve_transposed
from ehm.reference.pyramid import compute_pyramid

__all__ = ["Detector", "Objects", "Proposals"]

_RATIOS = (0.5, 1.0, 2.0)
_PROPOSAL_OVERLAP = 0.7
"""Proposals that overlap more are one."""
_POSITIVE = 0.7
_NEGATIVE = 0.3
"""Anchors that overlap an object more and less than these are right and wrong; those between do not count."""
_MATCH = 0.5
_SAMPLES = 256
"""Anchors of an image that count at most; half of them may be right ones."""
_SMOOTH = 1 / 9
_SMALLEST = 1e-3
"""Smallest side of a proposal in pixels."""
_BOX_SIDE = 7
_MASK_SIDE = 14
_BOX_WEIGHTS = (10.0, 5.0)
_POINTS = 2
"""Points along each side of a cell whose mean a region takes."""
_FINEST = 4
"""Stride of the finest map, from which the levels of boxes are counted."""


@dataclass(frozen=True)
class Objects:
    """The objects of an image: ``boxes`` (n, 4), ``labels`` (n,) from 1, and ``masks`` (n, H, W)."""

    boxes: Floats
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_]


@dataclass(frozen=True)
class Proposals:
    """The proposals of an image and what they should become.

    ``boxes`` (n, 4) have the classes ``labels`` (n,), 0 for none. Those with a class, m of them, have the ``deltas``
    (m, 4) to their object and its ``masks`` (m, side, side).
    """

    boxes: Floats
    labels: NDArray[np.int64]
    deltas: Floats
    masks: Floats


@dataclass(frozen=True)
class Detector:
    """A detector with ``anchor_sizes`` of five levels on the outputs of the blocks ``taps``.

    ``pixels`` are normalised images (B, H, W, 3) with their ``objects``.
    """

    spec: VitSpec
    anchor_sizes: Sequence[int]
    taps: Sequence[int]
    pixels: Floats
    objects: Sequence[Objects]

    def find_proposals(self, weights: Weights) -> list[Proposals]:
        """Find the proposals of each image, the objects themselves at their end; gradients pass them by."""
        scores, deltas, levels = self._look_at_anchors(self._compute_maps(weights), weights)
        anchors = np.concatenate(levels)
        level_of = np.repeat(np.arange(len(levels)), [len(level) for level in levels])
        proposals = []
        for image, objects in enumerate(self.objects):
            height, width = self.pixels.shape[1:3]
            boxes = decode_boxes(deltas[image], anchors).clip(0, [width, height, width, height])
            large = ((boxes[:, 2:] - boxes[:, :2]) >= _SMALLEST).all(axis=1)
            kept = []
            for level in range(len(levels)):
                chosen = np.flatnonzero(large & (level_of == level))
                kept.append(chosen[suppress_doubles(boxes[chosen], scores[image, chosen], _PROPOSAL_OVERLAP)])
            proposals.append(_match_proposals(np.concatenate([boxes[np.concatenate(kept)], objects.boxes]), objects))
        return proposals

    def compute_losses(self, weights: Weights, proposals: Sequence[Proposals]) -> dict[str, float]:
        """Compute the terms of the loss, by torchvision's names."""
        maps = self._compute_maps(weights)
        losses = self._compare_anchors(maps, weights)
        return losses | self._compare_proposals(maps, weights, proposals)

    def _compute_maps(self, weights: Weights) -> list[Floats]:
        """Compute the pyramid (Lin et al., 2017), and every second place of its coarsest map."""
        levels = compute_pyramid(self.spec, take_encoder(weights, "backbone.pyramid."), self.pixels, self.taps)
        coarser: Floats | None = None
        maps: list[Floats] = []
        for index in range(len(levels) - 1, -1, -1):
            inner = convolve(weights, f"backbone.fpn.inner_blocks.{index}.0", levels[index])
            if coarser is not None:
                inner = inner + coarser.repeat(2, axis=1).repeat(2, axis=2)
            coarser = inner
            maps.insert(0, convolve(weights, f"backbone.fpn.layer_blocks.{index}.0", inner))
        return [*maps, maps[-1][:, ::2, ::2]]

    def _look_at_anchors(self, maps: Sequence[Floats], weights: Weights) -> tuple[Floats, Floats, list[Floats]]:
        """Return scores (B, A) and deltas (B, A, 4) of all anchors, and the anchors of each level."""
        height, width = self.pixels.shape[1:3]
        scores, deltas, anchors = [], [], []
        for size, level in zip(self.anchor_sizes, maps, strict=True):
            hidden = np.maximum(convolve(weights, "rpn.head.conv.0.0", level), 0)
            batch, *grid, _ = hidden.shape
            scores.append(convolve(weights, "rpn.head.cls_logits", hidden).reshape(batch, -1))
            deltas.append(convolve(weights, "rpn.head.bbox_pred", hidden).reshape(batch, -1, 4))
            stride = (height // grid[0], width // grid[1])
            anchors.append(make_anchors(size, _RATIOS, (grid[0], grid[1]), stride))
        return np.concatenate(scores, axis=1), np.concatenate(deltas, axis=1), anchors

    def _compare_anchors(self, maps: Sequence[Floats], weights: Weights) -> dict[str, float]:
        scores, deltas, levels = self._look_at_anchors(maps, weights)
        anchors = np.concatenate(levels)
        distance = 0.0
        entropies = []
        for image, objects in enumerate(self.objects):
            overlap = measure_overlap(objects.boxes, anchors)
            best = overlap.max(axis=0)
            # the best anchors of an object are right ones however little they overlap
            right = (best >= _POSITIVE) | (overlap == overlap.max(axis=1, keepdims=True)).any(axis=0)
            wrong = (best < _NEGATIVE) & ~right
            if right.sum() > _SAMPLES // 2 or right.sum() + wrong.sum() > _SAMPLES:
                raise ValueError(f"{right.sum()} right and {wrong.sum()} wrong anchors: some would be left out")
            wanted = encode_boxes(objects.boxes[overlap.argmax(axis=0)][right], anchors[right], (1.0, 1.0))
            distance += _smooth_distance(deltas[image, right], wanted)
            counted = right | wrong
            entropies.append(_binary_entropy(scores[image, counted], right[counted]))
        joined = np.concatenate(entropies)
        return {"loss_objectness": float(joined.mean()), "loss_rpn_box_reg": distance / len(joined)}

    def _compare_proposals(
        self, maps: Sequence[Floats], weights: Weights, proposals: Sequence[Proposals]
    ) -> dict[str, float]:
        likelihoods = []
        entropies = []
        distance = 0.0
        for image, found in enumerate(proposals):
            regions = self._cut_regions(maps, image, found.boxes, _BOX_SIDE)
            # channels come before places in torch's flat features
            hidden = regions.transpose(0, 3, 1, 2).reshape(len(regions), -1)
            for layer in ("fc6", "fc7"):
                hidden = np.maximum(apply_linear(weights, f"roi_heads.box_head.{layer}", hidden), 0)
            logits = apply_linear(weights, "roi_heads.box_predictor.cls_score", hidden)
            likelihoods.append(compute_log_softmax(logits)[np.arange(len(logits)), found.labels])
            deltas = apply_linear(weights, "roi_heads.box_predictor.bbox_pred", hidden).reshape(*logits.shape, 4)
            matched = np.flatnonzero(found.labels)
            distance += _smooth_distance(deltas[matched, found.labels[matched]], found.deltas)
            entropies.append(self._compare_masks(maps, weights, image, found))
        joined = np.concatenate(likelihoods)
        return {
            "loss_classifier": float(-joined.mean()),
            "loss_box_reg": distance / len(joined),
            "loss_mask": float(np.concatenate(entropies).mean()),
        }

    def _compare_masks(self, maps: Sequence[Floats], weights: Weights, image: int, found: Proposals) -> Floats:
        """Return the entropy of each cell of the masks of proposals that match an object: (m, side, side)."""
        matched = np.flatnonzero(found.labels)
        hidden = self._cut_regions(maps, image, found.boxes[matched], _MASK_SIDE)
        for layer in range(4):
            hidden = np.maximum(convolve(weights, f"roi_heads.mask_head.{layer}.0", hidden), 0)
        hidden = np.maximum(convolve_transposed(weights, "roi_heads.mask_predictor.conv5_mask", hidden), 0)
        logits = convolve(weights, "roi_heads.mask_predictor.mask_fcn_logits", hidden)
        return _binary_entropy(logits[np.arange(len(matched)), :, :, found.labels[matched]], found.masks)

    def _cut_regions(self, maps: Sequence[Floats], image: int, boxes: Floats, side: int) -> Floats:
        """Cut each box out of the map that suits its size: (n, side, side, D)."""
        roots = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
        # an object of 224 pixels belongs to the third of the four maps
        levels = np.floor(2 + np.log2(roots / 224) + 1e-6).clip(0, 3)
        regions = np.empty((len(boxes), side, side, maps[0].shape[-1]))
        for level in range(4):
            chosen = levels == level
            scale = 1 / (_FINEST * 2**level)
            regions[chosen] = align_regions(maps[level][image], boxes[chosen], scale, side, (_POINTS, _POINTS))
        return regions


def _match_proposals(boxes: Floats, objects: Objects) -> Proposals:
    """Give each of (n, 4) boxes the object that it overlaps most, if it overlaps enough."""
    overlap = measure_overlap(objects.boxes, boxes)
    matched = overlap.argmax(axis=0)
    found = overlap.max(axis=0) >= _MATCH
    side = 2 * _MASK_SIDE
    masks = []
    for box, index in zip(boxes[found], matched[found], strict=True):
        # about one point for each pixel
        down, across = (math.ceil(max(length, 1) / side) for length in (box[3] - box[1], box[2] - box[0]))
        mask = objects.masks[index].astype(np.float64)[..., None]
        masks.append(align_regions(mask, box[None], 1.0, side, (down, across))[0, :, :, 0])
    deltas = encode_boxes(objects.boxes[matched[found]], boxes[found], _BOX_WEIGHTS)
    return Proposals(boxes, np.where(found, objects.labels[matched], 0), deltas, np.stack(masks))


def _smooth_distance(found: Floats, wanted: Floats) -> float:
    """Sum the smooth L1 distances."""
    gap = np.abs(found - wanted)
    return float(np.where(gap < _SMOOTH, gap**2 / (2 * _SMOOTH), gap - _SMOOTH / 2).sum())


def _binary_entropy(logits: Floats, wanted: NDArray[np.floating] | NDArray[np.bool_]) -> Floats:
    """Compute the cross entropy of each logit against a probability."""
    entropy: Floats = np.logaddexp(0, logits) - logits * wanted
    return entropy
