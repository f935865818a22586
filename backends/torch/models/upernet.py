"""UperNet (Xiao et al., 2018): from a pyramid of features to scores of each class at each place.

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
from ehm.models.pyramid import PARTS

__all__ = ["PoolingPyramid", "UperNet", "compute_adaptive_mean", "upsample"]

_AUXILIARY = 2
"""The level that the auxiliary head is applied to."""


class UperNet(nn.Module):
    """Normalised (B, 3, H, W) -> scores (B, C, H/4, W/4); in training also the auxiliary head's (B, C, H/16, W/16).

    H and W are multiples of 32. ``pyramid`` ends in the encoder; all else is the head.
    """

    def __init__(self, pyramid: Pyramid, classes: int, config: UperNetConfig) -> None:
        super().__init__()
        channels = pyramid.channels
        width = config.channels
        self.pyramid = pyramid
        self.pooling = PoolingPyramid(channels[-1], width)
        self.lateral = nn.ModuleList(_build_layer(level, width, 1) for level in channels[:-1])
        self.smooth = nn.ModuleList(_build_layer(width, width, 3) for _ in channels[:-1])
        self.fuse = _build_layer(width * len(channels), width, 3)
        self.classify = _build_classifier(width, classes, config.dropout)
        self.auxiliary: nn.Module | None = None
        if config.auxiliary_weight:
            hidden = config.auxiliary_channels
            self.auxiliary = nn.Sequential(
                _build_layer(channels[_AUXILIARY], hidden, 3), *_build_classifier(hidden, classes, config.dropout)
            )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """See the class; the second output is None in evaluation, and without auxiliary head."""
        levels = self.pyramid(images)
        scores: Tensor = self.classify(self._fuse_levels(levels))
        if self.auxiliary is None or not self.training:
            return scores, None
        return scores, self.auxiliary(levels[_AUXILIARY])

    def _fuse_levels(self, levels: Sequence[Tensor]) -> Tensor:
        """Fuse the levels from the coarsest to the finest (Lin et al., 2017): (B, D, H/4, W/4)."""
        maps = [layer(level) for layer, level in zip(self.lateral, levels, strict=False)]  # all but the coarsest
        maps.append(self.pooling(levels[-1]))
        for index in range(len(maps) - 1, 0, -1):
            maps[index - 1] = maps[index - 1] + upsample(maps[index], maps[index - 1].shape[2:])
        size = maps[0].shape[2:]
        outputs = [self.smooth[0](maps[0])]
        for layer, level in zip(self.smooth[1:], maps[1:], strict=False):
            outputs.append(upsample(layer(level), size))
        outputs.append(upsample(maps[-1], size))  # the pooled level is smooth already
        fused: Tensor = self.fuse(torch.cat(outputs, dim=1))
        return fused


class PoolingPyramid(nn.Module):
    """Pyramid pooling (Zhao et al., 2017): (B, C_4, h, w) -> (B, D, h, w).

    The map is joined by means of itself, of its 2 x 2, 3 x 3 and 6 x 6 parts.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(_build_layer(channels, width, 1) for _ in PARTS)
        self.fuse = _build_layer(channels + width * len(PARTS), width, 3)

    def forward(self, level: Tensor) -> Tensor:
        """See the class."""
        size = level.shape[2:]
        maps = [level]
        for layer, scale in zip(self.parts, PARTS, strict=True):
            maps.append(upsample(layer(compute_adaptive_mean(level, scale)), size))
        fused: Tensor = self.fuse(torch.cat(maps, dim=1))
        return fused


def compute_adaptive_mean(level: Tensor, parts: int) -> Tensor:
    """Average as ``adaptive_avg_pool2d`` does, by two matrix products: (B, C, h, w) -> (B, C, parts, parts).

    Their gradients are the same every time on all devices, and ONNX can express them for any h and w.
    """
    down = _compute_shares(level.shape[2], parts, level)
    across = _compute_shares(level.shape[3], parts, level)
    return down @ level @ across.mT


def _compute_shares(side: int, parts: int, like: Tensor) -> Tensor:
    """Return the weights (parts, side) of a side's places in the mean of each part; neighbours may share a place."""
    # made on the device of ``like``, because a copy in every step would make the host wait
    part = torch.arange(parts, device=like.device)[:, None]
    place = torch.arange(side, device=like.device)
    inside = (place >= part * side // parts) & (place * parts < (part + 1) * side)
    return inside.to(like.dtype) / inside.sum(dim=1, keepdim=True).to(like.dtype)


def upsample(values: Tensor, size: Sequence[int]) -> Tensor:
    """Resize bilinearly with aligned pixel borders: (B, C, h, w) -> (B, C, *size)."""
    return F.interpolate(values, tuple(size), mode="bilinear", align_corners=False)


def _build_layer(channels: int, width: int, kernel: int) -> nn.Sequential:
    # without bias, which batch norm would take off
    convolution = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def _build_classifier(width: int, classes: int, dropout: float) -> nn.Sequential:
    linear = nn.Conv2d(width, classes, 1)
    nn.init.normal_(linear.weight, std=0.01)
    assert linear.bias is not None
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.Dropout2d(dropout), linear)
