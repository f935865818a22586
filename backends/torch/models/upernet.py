"""UperNet (Xiao et al., 2018): a pyramid of features in, scores of each class at each place out.

The head is mmsegmentation's ``UPerHead`` with its auxiliary ``FCNHead``, as it is configured for MAE and BEiT.

Shapes: B images of H x W pixels, C classes, D channels of the head, C_i channels of the pyramid's level i.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ehm.backends.torch.models.pyramid import Pyramid
from ehm.config import UperNetConfig

__all__ = ["PoolingPyramid", "UperNet", "adaptive_mean", "upsample"]

_SCALES = (1, 2, 3, 6)
_AUXILIARY = 2
"""The level that the auxiliary head looks at."""


class UperNet(nn.Module):
    """Normalised (B, 3, H, W) -> scores (B, C, H/4, W/4); in training also the auxiliary head's (B, C, H/16, W/16).

    H and W are multiples of 32. ``pyramid`` ends in the encoder; all else is the head.
    """

    def __init__(self, pyramid: Pyramid, classes: int, config: UperNetConfig) -> None:
        super().__init__()
        channels, width = pyramid.channels, config.channels
        self.pyramid = pyramid
        self.pooling = PoolingPyramid(channels[-1], width)
        self.lateral = nn.ModuleList(_build_layer(level, width, 1) for level in channels[:-1])
        self.smooth = nn.ModuleList(_build_layer(width, width, 3) for _ in channels[:-1])
        self.fuse = _build_layer(width * len(channels), width, 3)
        self.classify = _build_classifier(width, classes, config.dropout)
        self.auxiliary: nn.Module | None = None
        if config.auxiliary_weight:
            level, hidden = channels[_AUXILIARY], config.auxiliary_channels
            self.auxiliary = nn.Sequential(
                _build_layer(level, hidden, 3), *_build_classifier(hidden, classes, config.dropout)
            )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """See the class; the second is None in evaluation, and without auxiliary head."""
        levels = self.pyramid(images)
        scores: Tensor = self.classify(self._fused(levels))
        if self.auxiliary is None or not self.training:
            return scores, None
        return scores, self.auxiliary(levels[_AUXILIARY])

    def _fused(self, levels: Sequence[Tensor]) -> Tensor:
        """From the coarsest level to the finest, each added to the one below (Lin et al., 2017): (B, D, H/4, W/4)."""
        maps = [layer(level) for layer, level in zip(self.lateral, levels, strict=False)]
        maps.append(self.pooling(levels[-1]))
        for index in range(len(maps) - 1, 0, -1):
            maps[index - 1] = maps[index - 1] + upsample(maps[index], maps[index - 1].shape[2:])
        outputs = [layer(each) for layer, each in zip(self.smooth, maps, strict=False)] + maps[-1:]
        size = outputs[0].shape[2:]
        fused: Tensor = self.fuse(torch.cat([outputs[0], *(upsample(each, size) for each in outputs[1:])], dim=1))
        return fused


class PoolingPyramid(nn.Module):
    """Pyramid pooling (Zhao et al., 2017): means of the whole map and of 2 x 2, 3 x 3 and 6 x 6 parts of it beside it.

    (B, C_4, h, w) -> (B, D, h, w).
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(_build_layer(channels, width, 1) for _ in _SCALES)
        self.fuse = _build_layer(channels + width * len(_SCALES), width, 3)

    def forward(self, level: Tensor) -> Tensor:
        """See the class."""
        size = level.shape[2:]
        pooled = [layer(adaptive_mean(level, scale)) for layer, scale in zip(self.parts, _SCALES, strict=True)]
        fused: Tensor = self.fuse(torch.cat([level, *(upsample(each, size) for each in pooled)], dim=1))
        return fused


def adaptive_mean(level: Tensor, parts: int) -> Tensor:
    """(B, C, h, w) -> (B, C, parts, parts): what ``adaptive_avg_pool2d`` computes, as two matrix products.

    These have gradients that are the same every time on all devices, and ONNX can express them for any h and w.
    """
    down, across = (_compute_shares(side, parts, level) for side in level.shape[2:])
    return down @ level @ across.mT


def _compute_shares(side: int, parts: int, like: Tensor) -> Tensor:
    """Weights (parts, side) of a side's places in the mean of each part; neighbouring parts may share a place.

    Made where ``like`` is: a copy from the host in every step would make that wait.
    """
    part, place = torch.arange(parts, device=like.device)[:, None], torch.arange(side, device=like.device)
    inside = (place >= part * side // parts) & (place * parts < (part + 1) * side)
    return inside.to(like.dtype) / inside.sum(dim=1, keepdim=True).to(like.dtype)


def upsample(values: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, as corners of pixels lie: (B, C, h, w) -> (B, C, *size)."""
    return F.interpolate(values, tuple(size), mode="bilinear", align_corners=False)


def _build_layer(channels: int, width: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def _build_classifier(width: int, classes: int, dropout: float) -> nn.Sequential:
    linear = nn.Conv2d(width, classes, 1)
    nn.init.normal_(linear.weight, std=0.01)
    assert linear.bias is not None
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.Dropout2d(dropout), linear)
