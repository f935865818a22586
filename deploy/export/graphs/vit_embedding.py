"""The tokens that enter the first block of a ViT, as nodes of an ONNX graph: patches, and the tokens before them.

Shapes: B images, N = h * w patches, P tokens before them (class token, registers), L = P + N tokens, D features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ehm.config.encoders import VitSpec
from ehm.deploy.export.graphs.encoder import EncoderGraph
from ehm.deploy.export.graphs.nodes import BICUBIC
from ehm.storage.arrays import Arrays

__all__ = ["add_embedding"]

_SHAPE = "patch_embed.shape"
"""Constant: the shape (B, D, N), whatever the number of patches."""


def add_embedding(graph: EncoderGraph, images: str, spec: VitSpec, dynamic_size: bool) -> str:
    """Add images -> tokens (B, L, D), with their positions.

    With ``dynamic_size`` the positions are resampled at run time for the grid of each batch.
    """
    name = "patch_embed.proj"
    weights = [graph.add_parameter(f"{name}.weight")]
    if f"{name}.bias" in graph.arrays:
        weights.append(graph.add_parameter(f"{name}.bias"))
    size = [spec.patch_size, spec.patch_size]
    grid = graph.add_node("Conv", [images, *weights], "patch_embed/conv", kernel_shape=size, strides=size)
    shape = graph.add_integers(_SHAPE, 0, spec.width, -1)
    rows = graph.add_node("Reshape", [grid, shape], "patch_embed/rows")
    tokens = graph.add_node("Transpose", [rows], "patch_embed/patches", perm=[0, 2, 1])
    if spec.form.norm_patches:
        tokens = graph.add_norm("patch_embed.norm", tokens, "patch_embed.norm/norm")
    tokens = _add_prefix(graph, tokens, spec, grid if dynamic_size else None)
    if spec.form.norm_before:
        tokens = graph.add_norm("norm_pre", tokens, "norm_pre/norm")
    return tokens


def _add_prefix(graph: EncoderGraph, patches: str, spec: VitSpec, grid: str | None) -> str:
    """Add patches (B, N, D) -> all tokens with their positions: (B, L, D).

    The tokens before the patches take rows of zeros, and are added together with the positions. These are resampled for
    the ``grid`` (B, D, h, w), if that is given.
    """
    added = _sum_prefix_and_positions(graph.arrays, spec)
    if added is None:
        return patches
    prefix = spec.form.prefix_tokens
    first = "cls_token" if spec.form.class_token else "reg_token"
    tokens = patches
    if prefix:
        # a Concat would need the batch's size, which is dynamic
        pads = graph.add_integers(f"{first}.pads", 0, prefix, 0, 0, 0, 0)
        tokens = graph.add_node("Pad", [patches, pads], f"{first}/pad")
    if grid is None:
        constant = graph.add_constant("pos_embed" if "pos_embed" in graph.arrays else first, added)
    else:
        constant = _resample_positions(graph, added[:, prefix:], spec, grid)
        if prefix:
            stored = graph.add_constant(first, added[:, :prefix])
            constant = graph.add_node("Concat", [stored, constant], "pos_embed/tokens", axis=1)
    return graph.add_node("Add", [tokens, constant], "pos_embed/sum")


def _sum_prefix_and_positions(arrays: Arrays, spec: VitSpec) -> NDArray[np.float32] | None:
    """Return the tokens before the patches, and the positions of all tokens: (1, L, D); None without either.

    Adding both here spares a node at run time.
    """
    prefix = [arrays[name] for name in ("cls_token", "reg_token") if name in arrays]
    positions = arrays.get("pos_embed")
    if positions is None and not prefix:
        return None
    # rows stay 0 where the form adds no position: everywhere, or before the patches
    total = np.zeros((1, spec.form.prefix_tokens + spec.patches, spec.width), np.float32)
    if positions is not None:
        total[:, spec.form.prefix_tokens - spec.form.position_tokens :] = positions
    if prefix:
        total[:, : spec.form.prefix_tokens] += np.concatenate(prefix, axis=1)
    return total


def _resample_positions(graph: EncoderGraph, positions: NDArray[np.float32], spec: VitSpec, grid: str) -> str:
    """Add positions (1, N, D) of the spec's grid -> those of the patches of ``grid`` (B, D, h, w)."""
    # Resize works on planes (1, D, h, w)
    planes = positions.swapaxes(1, 2).reshape(1, spec.width, *spec.grid)
    stored = graph.add_constant("pos_embed", planes)
    size = graph.add_node("Shape", [grid], "grid/size", start=2)
    resized = graph.add_node("Resize", [stored, "", "", size], "pos_embed/resized", axes=[2, 3], **BICUBIC)
    rows = graph.add_node("Reshape", [resized, _SHAPE], "pos_embed/rows")
    return graph.add_node("Transpose", [rows], "pos_embed/patches", perm=[0, 2, 1])
