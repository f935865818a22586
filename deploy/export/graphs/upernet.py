"""UperNet above an encoder, as nodes of an ONNX graph: images of one size -> scores of every pixel.

Batch norms become a part of the convolutions in front of them. Adaptive means, and their enlargement, are matrix
products with constants; maps whose sides are multiples of each other are enlarged by Resize.

Shapes: B images of H x W pixels, C classes, D channels of the head, C_i channels of the pyramid's level i.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.data.bilinear import interpolate_side
from ehm.deploy.export.graphs.encoder import EncoderGraph
from ehm.deploy.export.graphs.vit import VitGraph
from ehm.models.pyramid import (
    LAYERS_A_DOUBLING,
    PARTS,
    STRIDES,
    Resizing,
    compute_shares,
    plan_resizing,
    round_stride,
)
from ehm.storage.arrays import Arrays

__all__ = ["write_scores"]

_NORM_EPSILON = 1e-5
"""Epsilon of torch's batch norms."""

Size = tuple[int, int]


def write_scores(graph: EncoderGraph, arrays: Arrays, taps: Sequence[int], image_size: Size) -> None:
    """Add ``images`` of ``image_size`` = (H, W) -> ``scores`` (B, C, H, W), logits.

    ``taps`` are the blocks of a ViT, or the stages of a Swin, that the four levels are taken from; ``arrays`` are the
    network's parameters beside the encoder.
    """
    head = _UperNetHead(graph, arrays, image_size)
    if isinstance(graph, VitGraph):
        levels = head.resize_maps(graph, taps)
    else:
        levels = graph.add_maps("images", taps)
    scores = head.classify(head.fuse_levels(levels))
    head.enlarge(scores, STRIDES[0], "scores")


class _UperNetHead:
    """The nodes of the neck and the head, which are added to ``graph``."""

    def __init__(self, graph: EncoderGraph, arrays: Arrays, image_size: Size) -> None:
        self.graph = graph
        self.arrays = arrays
        height, width = image_size
        self.sizes = [(height // stride, width // stride) for stride in STRIDES]

    def resize_maps(self, encoder: VitGraph, taps: Sequence[int]) -> list[str]:
        """Add ``images`` -> the maps of a ViT's blocks ``taps``, at the strides of the levels."""
        patch_size = encoder.spec.patch_size
        stride = round_stride(patch_size)
        images = "images"
        if patch_size != stride:
            images = self.enlarge(images, patch_size / stride, "images/resized")
        levels = []
        for index, values in enumerate(encoder.add_maps(images, taps)):
            levels.append(self._resize_map(f"pyramid.neck.{index}", values, plan_resizing(stride, STRIDES[index])))
        return levels

    def fuse_levels(self, levels: Sequence[str]) -> str:
        """Add the levels -> their fusion from the coarsest to the finest: (B, D, H/4, W/4)."""
        maps = []
        for index, level in enumerate(levels[:-1]):
            maps.append(self._add_layer(f"lateral.{index}", level))
        maps.append(self._pool_pyramid(levels[-1]))
        for index in range(len(maps) - 1, 0, -1):
            enlarged = self.enlarge(maps[index], 2, f"lateral.{index}/enlarged")
            maps[index - 1] = self.graph.add_node("Add", [maps[index - 1], enlarged], f"lateral.{index - 1}/total")
        outputs = [self._add_layer("smooth.0", maps[0])]
        for index, level in enumerate(maps[1:-1], start=1):
            smooth = self._add_layer(f"smooth.{index}", level)
            outputs.append(self.enlarge(smooth, 2**index, f"smooth.{index}/enlarged"))
        # the pooled level is smooth already
        outputs.append(self.enlarge(maps[-1], STRIDES[-1] // STRIDES[0], "pooling/enlarged"))
        return self._add_layer("fuse", self.graph.add_node("Concat", outputs, "fuse/levels", axis=1))

    def classify(self, values: str) -> str:
        """Add (B, D, h, w) -> scores (B, C, h, w)."""
        return self._add_convolution("classify.1", values)

    def enlarge(self, values: str, factor: float, output: str) -> str:
        """Add a bilinear resize by ``factor`` with aligned pixel borders: (B, C, h, w) -> (B, C, h', w')."""
        scales = self.graph.add_constant(f"resize.{factor:g}", np.array([1, 1, factor, factor], np.float32))
        options: dict[str, Any] = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        return self.graph.add_node("Resize", [values, "", scales], output, **options)

    def _resize_map(self, name: str, values: str, resizing: Resizing) -> str:
        """Add a ViT's map (B, D, h, w) -> the map of a level."""
        if resizing.shrinking > 1:
            sides = [resizing.shrinking, resizing.shrinking]
            return self.graph.add_node("MaxPool", [values], f"{name}/map", kernel_shape=sides, strides=sides)
        for step in range(resizing.doublings):
            place = step * LAYERS_A_DOUBLING
            if step:
                values = self.graph.add_gelu(f"{name}.{place - 1}", values)
            norm = f"{name}.{place + 1}" if step < resizing.doublings - 1 else None
            values = self._add_convolution(f"{name}.{place}", values, norm, transposed=True)
        return values

    def _pool_pyramid(self, level: str) -> str:
        """Add pyramid pooling of the coarsest level: (B, C_4, h, w) -> (B, D, h, w)."""
        height, width = self.sizes[-1]
        maps = [level]
        for index, parts in enumerate(PARTS):
            name = f"pooling.parts.{index}"
            down = compute_shares(height, parts)
            across = compute_shares(width, parts)
            reduced = self._add_layer(name, self._multiply_sides(level, f"{name}/means", down, across))
            down = interpolate_side(parts, height)
            across = interpolate_side(parts, width)
            maps.append(self._multiply_sides(reduced, f"{name}/enlarged", down, across))
        return self._add_layer("pooling.fuse", self.graph.add_node("Concat", maps, "pooling/maps", axis=1))

    def _multiply_sides(self, values: str, output: str, down: NDArray[np.float32], across: NDArray[np.float32]) -> str:
        """Add ``down`` X ``across``^T for every channel X: (B, C, h, w) -> (B, C, h', w')."""
        columns = self.graph.add_constant(f"{output}.across", across.T)
        rows = self.graph.add_constant(f"{output}.down", down)
        wide = self.graph.add_node("MatMul", [values, columns], f"{output}/columns")
        return self.graph.add_node("MatMul", [rows, wide], output)

    def _add_layer(self, name: str, values: str) -> str:
        """Add a convolution with its batch norm and ReLU: (B, C, h, w) -> (B, D, h, w)."""
        return self.graph.add_node("Relu", [self._add_convolution(f"{name}.0", values, f"{name}.1")], f"{name}/relu")

    def _add_convolution(self, name: str, values: str, norm: str | None = None, transposed: bool = False) -> str:
        """Add a convolution that keeps the map's size, or a ``transposed`` one that doubles its sides.

        The batch norm called ``norm`` follows it, if there is one.
        """
        weight = self.arrays[f"{name}.weight"]
        bias = self.arrays.get(f"{name}.bias")
        if norm is not None:
            factor, shift = self._find_factor_and_shift(norm)
            # a transposed convolution has its outputs in the second place
            shape = (1, -1, 1, 1) if transposed else (-1, 1, 1, 1)
            weight = (weight * factor.reshape(shape)).astype(np.float32)
            before = 0.0 if bias is None else bias
            bias = (before * factor + shift).astype(np.float32)
        assert bias is not None
        inputs = [values, self.graph.add_constant(f"{name}.weight", weight)]
        inputs.append(self.graph.add_constant(f"{name}.bias", bias))
        side = weight.shape[2]
        options: dict[str, Any] = {"kernel_shape": [side, side]}
        if transposed:
            return self.graph.add_node("ConvTranspose", inputs, f"{name}/conv", strides=[side, side], **options)
        return self.graph.add_node("Conv", inputs, f"{name}/conv", pads=[side // 2] * 4, **options)

    def _find_factor_and_shift(self, norm: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what a batch norm multiplies with and adds, (C,) each, in float64 so that each is rounded once."""
        variance = self.arrays[f"{norm}.running_var"].astype(np.float64)
        factor = self.arrays[f"{norm}.weight"] / np.sqrt(variance + _NORM_EPSILON)
        return factor, self.arrays[f"{norm}.bias"] - self.arrays[f"{norm}.running_mean"] * factor
