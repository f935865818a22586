"""Four maps of a ViT at the strides 4, 8, 16 and 32 in NumPy and float64, and UperNet on them (Xiao et al., 2018).

Shapes: B images of H x W pixels, D features, C classes; maps are (B, h, w, channels).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ehm.config.encoders import VitSpec
from ehm.reference.classifier import take_encoder
from ehm.reference.layers import ACTIVATIONS, Floats, Weights
from ehm.reference.maps import (
    apply_batch_norm,
    average_parts,
    convolve,
    convolve_transposed,
    pool_maximum,
    resize_bilinear,
    run_convolution_layer,
)
from ehm.reference.vit import Vit

__all__ = ["compute_class_scores", "compute_pyramid"]

_STRIDES = (4, 8, 16, 32)
_POOLING = (1, 2, 3, 6)
_AUXILIARY = 2
"""The level that the auxiliary head looks at."""


def compute_pyramid(spec: VitSpec, weights: Weights, pixels: Floats, taps: Sequence[int]) -> list[Floats]:
    """Compute the outputs of the blocks ``taps``, brought to the four strides: normalised (B, H, W, 3)."""
    encoder = take_encoder(weights, "encoder.")
    vit = Vit(spec, encoder)
    outputs, _ = vit.run_blocks(vit.embed(pixels))
    height = pixels.shape[1] // spec.patch_size
    maps = []
    for level, (tap, stride) in enumerate(zip(taps, _STRIDES, strict=True)):
        tokens = outputs[tap][:, spec.form.prefix_tokens :]
        patches = tokens.reshape(len(tokens), height, -1, tokens.shape[-1])
        maps.append(_bring_to_stride(weights, f"neck.{level}", patches, spec.patch_size, stride))
    return maps


def compute_class_scores(weights: Weights, levels: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Compute UperNet's scores (B, H / 4, W / 4, C) in training, and those of its auxiliary head (B, H / 16, ...)."""
    maps = []
    for index, level in enumerate(levels[:-1]):
        maps.append(run_convolution_layer(weights, f"lateral.{index}", level))
    maps.append(_pool_pyramid(weights, levels[-1]))
    for index in range(len(maps) - 1, 0, -1):
        finer = maps[index - 1]
        maps[index - 1] = finer + resize_bilinear(maps[index], finer.shape[1:3])
    outputs = []
    for index, fused in enumerate(maps[:-1]):
        outputs.append(run_convolution_layer(weights, f"smooth.{index}", fused))
    outputs.append(maps[-1])
    size = maps[0].shape[1:3]
    joined = np.concatenate([resize_bilinear(each, size) for each in outputs], axis=-1)
    scores = convolve(weights, "classify.1", run_convolution_layer(weights, "fuse", joined))
    hidden = run_convolution_layer(weights, "auxiliary.0", levels[_AUXILIARY])
    return scores, convolve(weights, "auxiliary.2", hidden)


def _bring_to_stride(weights: Weights, name: str, patches: Floats, stride: int, wanted: int) -> Floats:
    """Enlarge by transposed convolutions, with batch norm and GELU between two, or take the largest of squares."""
    if wanted > stride:
        return pool_maximum(patches, wanted // stride)
    layer = 0
    while stride > wanted:
        if layer:
            patches = ACTIVATIONS["gelu"](apply_batch_norm(weights, f"{name}.{layer}", patches))
            layer += 2
        patches = convolve_transposed(weights, f"{name}.{layer}", patches)
        layer += 1
        stride //= 2
    return patches


def _pool_pyramid(weights: Weights, level: Floats) -> Floats:
    size = level.shape[1:3]
    maps = [level]
    for index, parts in enumerate(_POOLING):
        means = run_convolution_layer(weights, f"pooling.parts.{index}", average_parts(level, parts))
        maps.append(resize_bilinear(means, size))
    return run_convolution_layer(weights, "pooling.fuse", np.concatenate(maps, axis=-1))
