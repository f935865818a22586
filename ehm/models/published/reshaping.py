"""Steps that bring arrays under timm's names into the shapes and the number that timm has.

Shapes: D features of a token, N positions, p pixels on the side of a patch.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ehm.storage.arrays import Arrays, drop_names

__all__ = [
    "add_batch_axes",
    "drop_key_bias",
    "fold_class_position",
    "join_heads",
    "join_heads_without_key_bias",
    "join_query_value_biases",
    "move_biases_to_heads",
    "split_pooling_heads",
    "unflatten_patch_weights",
]

_AXES = {"cls_token": 3, "reg_token": 3, "mask_token": 3, "pos_embed": 3, "attn_pool.latent": 3}
"""Number of axes of timm's tokens and positions: (1, tokens, D)."""
_HEADS = ("q_proj", "k_proj", "v_proj")


def add_batch_axes(arrays: Arrays) -> Arrays:
    """Give tokens and positions that are stored as (D,) or (N, D) timm's shape (1, N, D)."""
    shaped = dict(arrays)
    for name, axes in _AXES.items():
        if name in shaped:
            missing = axes - shaped[name].ndim
            shaped[name] = shaped[name].reshape((1,) * missing + shaped[name].shape)
    return shaped


def fold_class_position(arrays: Arrays) -> Arrays:
    """Add the class token's position to that token, and leave positions to the patches, if there are registers.

    DINOv2's registers have no position, and timm's ViT has positions for all tokens before the patches or for none.
    """
    if "reg_token" not in arrays:
        return arrays
    folded = dict(arrays)
    positions = arrays["pos_embed"]
    folded["cls_token"] = arrays["cls_token"] + positions[:, :1]
    folded["pos_embed"] = np.ascontiguousarray(positions[:, 1:])
    return folded


def join_heads(arrays: Arrays) -> Arrays:
    """Join the weights of queries, keys and values, and their biases: of those, an absent one is zero."""
    joined = _join_head_weights(arrays)
    for stem in _list_stems(arrays):
        biases = [arrays.get(f"{stem}{head}.bias") for head in _HEADS]
        if any(bias is not None for bias in biases):
            width = len(arrays[f"{stem}q_proj.weight"])
            joined[f"{stem}qkv.bias"] = _concatenate_biases(biases, width)
    return joined


def join_heads_without_key_bias(arrays: Arrays) -> Arrays:
    """Join the weights of queries, keys and values, and keep the biases of queries and values apart.

    So timm's Beit and Eva have them, whose keys have no bias.
    """
    joined = _join_head_weights(arrays)
    for stem in _list_stems(arrays):
        for head in ("q", "v"):
            bias = arrays.get(f"{stem}{head}_proj.bias")
            if bias is not None:
                joined[f"{stem}{head}_bias"] = bias
    return joined


def join_query_value_biases(arrays: Arrays) -> Arrays:
    """Join the biases of queries and values to one of queries, keys and values, in which that of keys is zero."""
    joined = dict(arrays)
    for name, query in arrays.items():
        stem = name.removesuffix("q_bias")
        if stem != name:
            del joined[name]
            value = joined.pop(f"{stem}v_bias")
            joined[f"{stem}qkv.bias"] = _concatenate_biases([query, None, value], len(query))
    return joined


def drop_key_bias(arrays: Arrays) -> Arrays:
    """Split the joint biases of queries, keys and values, and leave out that of keys, which DINOv3 masks.

    Its files have the mask beside the biases, which is zero for keys (``dinov3/layers/attention.py``).
    """
    split = dict(arrays)
    for name in arrays:
        stem = name.removesuffix("qkv.bias")
        if stem != name:
            query, _, value = np.split(split.pop(name), 3)
            split[f"{stem}q_bias"] = query
            split[f"{stem}v_bias"] = value
    return split


def move_biases_to_heads(arrays: Arrays) -> Arrays:
    """Name the biases of queries and values after their weights, where these are not joined, as timm's Eva does."""
    moved = dict(arrays)
    for stem in _list_stems(arrays):
        for head in ("q", "v"):
            if f"{stem}{head}_bias" in moved:
                moved[f"{stem}{head}_proj.bias"] = moved.pop(f"{stem}{head}_bias")
    return moved


def split_pooling_heads(arrays: Arrays) -> Arrays:
    """Split the joint weights of a pooling attention, PyTorch's, into timm's: queries apart from keys and values."""
    split = dict(arrays)
    for part in ("weight", "bias"):
        joint = split.pop(f"attn_pool.in_proj_{part}", None)
        if joint is not None:
            width = len(joint) // 3
            split[f"attn_pool.q.{part}"] = joint[:width]
            split[f"attn_pool.kv.{part}"] = joint[width:]
    return split


def unflatten_patch_weights(arrays: Arrays) -> Arrays:
    """Turn a linear embedding of patches, whose pixels are ordered (p, p, 3), into a convolution: (D, 3, p, p)."""
    weights = arrays["patch_embed.proj.weight"]
    if weights.ndim != 2:
        return arrays
    side = math.isqrt(weights.shape[1] // 3)
    pixels = weights.reshape(-1, side, side, 3).transpose(0, 3, 1, 2)
    return {**arrays, "patch_embed.proj.weight": np.ascontiguousarray(pixels)}


def _list_stems(arrays: Arrays) -> list[str]:
    """List what stands before ``q_proj.weight`` in the names of attention whose weights are not joined."""
    suffix = "q_proj.weight"
    return [name.removesuffix(suffix) for name in arrays if name.endswith(suffix)]


def _join_head_weights(arrays: Arrays) -> Arrays:
    """Return ``arrays`` with joint weights of queries, keys and values, and without the biases of these."""
    stems = _list_stems(arrays)
    parts = []
    joint = {}
    for stem in stems:
        parts += [f"{stem}{head}.{part}" for head in _HEADS for part in ("weight", "bias")]
        joint[f"{stem}qkv.weight"] = np.concatenate([arrays[f"{stem}{head}.weight"] for head in _HEADS])
    return drop_names(arrays, set(parts)) | joint


def _concatenate_biases(biases: list[NDArray[np.floating] | None], width: int) -> NDArray[np.floating]:
    """Concatenate the biases, (width,) each, of queries, keys and values; None stands for zeros."""
    given = [bias for bias in biases if bias is not None]
    zeros = np.zeros(width, given[0].dtype)
    return np.concatenate([zeros if bias is None else bias for bias in biases])
