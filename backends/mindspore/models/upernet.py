"""UperNet (Xiao et al., 2018): from a pyramid of features to scores of each class at each place.

The head is mmsegmentation's ``UPerHead`` with its auxiliary ``FCNHead``, as it is configured for MAE and BEiT.

Shapes: B images of H x W pixels, C classes, D channels of the head, C_i channels of the pyramid's level i.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops

from ehm.backends.base import Processes
from ehm.backends.mindspore.models.frame import NO_FRAME, keep_inside, resize_map
from ehm.backends.mindspore.models.maps import Convolution, SideProducts, build_layer, build_resize, multiply_sides
from ehm.config import UperNetConfig
from ehm.data.bilinear import interpolate_side
from ehm.models.pyramid import PARTS, STRIDES, compute_shares

__all__ = ["UperNet"]

_AUXILIARY = 2
"""The level that the auxiliary head is applied to."""
_CLASSIFIER_STD = 0.01

_MASKS, _TO_FINER, _TO_FINEST, _MEANS, _SPREADING, _ENLARGING = range(len(NO_FRAME))
"""Places of the parts of a frame."""

Size = tuple[int, int]


class UperNet(nn.Cell):
    """Normalised (B, 3, H, W) -> scores (B, C, H, W), and in training also the auxiliary head's, of the same size.

    H and W are ``image_size``, multiples of 32. ``pyramid`` ends in the encoder; all else is the head. Weights are
    drawn from ``rng``.
    """

    def __init__(
        self,
        pyramid: Any,
        classes: int,
        config: UperNetConfig,
        image_size: Size,
        dtype: Any,
        processes: Processes,
        rng: np.random.Generator,
    ) -> None:
        super().__init__()
        channels = pyramid.channels
        width = config.channels
        sizes = [(image_size[0] // stride, image_size[1] // stride) for stride in STRIDES]

        def build(inputs: int, outputs: int, kernel: int) -> nn.SequentialCell:
            return build_layer(inputs, outputs, kernel, dtype, processes, rng)

        self.pyramid = pyramid
        self.pooling = PoolingPyramid(channels[-1], width, sizes[-1], dtype, processes, rng)
        self.lateral = nn.CellList([build(level, width, 1) for level in channels[:-1]])
        self.smooth = nn.CellList([build(width, width, 3) for _ in channels[:-1]])
        self.fuse = build(width * len(channels), width, 3)
        self.classify = nn.SequentialCell(*_build_classifier(width, classes, dtype, rng))
        self.has_auxiliary = config.auxiliary_weight > 0
        if self.has_auxiliary:
            hidden = config.auxiliary_channels
            layer = build(channels[_AUXILIARY], hidden, 3)
            self.auxiliary = nn.SequentialCell(layer, *_build_classifier(hidden, classes, dtype, rng))
            self.enlarge_auxiliary = build_resize(sizes[_AUXILIARY], image_size)
        coarser = range(1, len(sizes))
        self.to_finer = nn.CellList([build_resize(sizes[level], sizes[level - 1]) for level in coarser])
        self.to_finest = nn.CellList([build_resize(sizes[level], sizes[0]) for level in coarser])
        self.enlarge = build_resize(sizes[0], image_size)

    def construct(
        self, images: Tensor, keep: Tensor | None, kept_channels: Tensor | None, kept_auxiliary: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See the class; without auxiliary head the second output is the first.

        ``keep`` are drop path's factors, the others dropout's: (B, D, 1, 1) each.
        """
        levels = self.pyramid(images, keep)
        scores = self._classify(self.classify, self._fuse_levels(levels), kept_channels)
        scores = self.enlarge(scores)
        if not self.has_auxiliary:
            return scores, scores
        features = self.auxiliary[0](levels[_AUXILIARY])
        return scores, self.enlarge_auxiliary(self._classify(self.auxiliary, features, kept_auxiliary))

    def score(self, images: Tensor) -> Tensor:
        """Compute the scores of evaluation: (B, 3, H, W) -> (B, C, H, W), float32."""
        return self.enlarge(self._classify(self.classify, self._fuse_levels(self.pyramid(images)), None))

    def score_canvas(self, levels: list[Tensor], frame: Any) -> Tensor:
        """Compute the scores of evaluation from the levels of images on a canvas with its ``frame``, float32."""
        scores = self._classify(self.classify, self._fuse_levels(levels, frame), None)
        return multiply_sides(scores, frame[_ENLARGING][0][0], frame[_ENLARGING][0][1])

    def _classify(self, layers: nn.Cell, features: Tensor, kept: Tensor | None) -> Tensor:
        """Apply the last of ``layers`` to (B, D, h, w), of which dropout keeps some channels."""
        if kept is not None:
            features = features * kept
        return layers[-1](features)

    def _fuse_levels(self, levels: list[Tensor], frame: Any = NO_FRAME) -> Tensor:
        """Fuse the levels from the coarsest to the finest (Lin et al., 2017): (B, D, H/4, W/4)."""
        masks = frame[_MASKS]
        to_finer = frame[_TO_FINER]
        to_finest = frame[_TO_FINEST]
        coarsest = len(levels) - 1
        totals = [self.pooling(levels[coarsest], masks[coarsest], frame[_MEANS], frame[_SPREADING])]
        for index in range(coarsest - 1, -1, -1):
            finer = resize_map(self.to_finer[index], totals[-1], to_finer[index])
            totals.append(self.lateral[index](levels[index]) + finer)
        outputs = []
        for index in range(coarsest):
            smooth = self.smooth[index](keep_inside(totals[coarsest - index], masks[index]))
            if index:
                smooth = resize_map(self.to_finest[index - 1], smooth, to_finest[index - 1])
            outputs.append(smooth)
        # the pooled level is smooth already
        outputs.append(resize_map(self.to_finest[coarsest - 1], totals[0], to_finest[coarsest - 1]))
        return self.fuse(keep_inside(ops.cat(outputs, 1), masks[0]))


class PoolingPyramid(nn.Cell):
    """Pyramid pooling (Zhao et al., 2017) of a map of ``size``: (B, C_4, h, w) -> (B, D, h, w).

    The map is joined by means of itself, of its 2 x 2, 3 x 3 and 6 x 6 parts.
    """

    def __init__(
        self, channels: int, width: int, size: Size, dtype: Any, processes: Processes, rng: np.random.Generator
    ) -> None:
        super().__init__()
        self.parts = nn.CellList([build_layer(channels, width, 1, dtype, processes, rng) for _ in PARTS])
        self.fuse = build_layer(channels + width * len(PARTS), width, 3, dtype, processes, rng)
        self.means = nn.CellList([SideProducts(*(compute_shares(side, parts) for side in size)) for parts in PARTS])
        self.enlarge = nn.CellList([SideProducts(*(interpolate_side(parts, side) for side in size)) for parts in PARTS])

    def construct(
        self, level: Tensor, mask: Any = None, means: Any = NO_FRAME[_MEANS], spreading: Any = NO_FRAME[_SPREADING]
    ) -> Tensor:
        """See the class; the rest are parts of a canvas's frame."""
        maps = [level]
        for index in range(len(PARTS)):
            pooled = self.parts[index](resize_map(self.means[index], level, means[index]))
            maps.append(resize_map(self.enlarge[index], pooled, spreading[index]))
        return self.fuse(keep_inside(ops.cat(maps, 1), mask))


def _build_classifier(width: int, classes: int, dtype: Any, rng: np.random.Generator) -> list[nn.Cell]:
    """Return the place of dropout, whose factors are handed in, and a convolution: (B, D, h, w) -> (B, C, h, w)."""
    weights = _CLASSIFIER_STD * rng.standard_normal((classes, width))
    return [nn.Identity(), Convolution(width, classes, 1, dtype, weights, bias=True)]
