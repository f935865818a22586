"""The parameters of a ViT's blocks under the same names and in the same order, whatever the form of the ViT.

timm's classes name the same things in several ways, and :class:`ehm.config.encoders.VitForm` says how forms differ.

Shapes: D features of a token, n heads of d features, H hidden features.
"""

from __future__ import annotations

import numpy as np

from ehm.config.encoders import VitSpec
from ehm.storage.arrays import Arrays

__all__ = ["unify_blocks"]

_PARTS = ("weight", "bias")


def unify_blocks(arrays: Arrays, spec: VitSpec) -> Arrays:
    """Return ``arrays``, those of a ViT of ``spec``, with the parameters of each block as a graph takes them.

    - Queries, keys and values have one matrix, ``attn.qkv.weight`` (3 D, D), and one bias, ``attn.qkv.bias`` (3 D,), in
      which those of them that have none have zeros.
    - Norms of queries divide by sqrt(d).
    - Features that rotary positions turn together lie half a head apart.
    - A gated MLP has its gate in ``mlp.fc1_g`` (H, D), and the values that it gates in ``mlp.fc1_x``.
    - The factors of both branches are ``gamma_1`` and ``gamma_2`` (D,).
    """
    unified = dict(arrays)
    rotary = spec.form.rotary
    for index in range(spec.depth):
        block = f"blocks.{index}"
        _join_projections(unified, f"{block}.attn")
        if spec.form.norm_queries:
            _divide_queries(unified, f"{block}.attn", spec.width // spec.heads)
        if rotary.kind is not None and not rotary.halves:
            _separate_pairs(unified, f"{block}.attn", spec.heads)
        if spec.form.mlp == "swiglu_packed":
            _split_gate(unified, f"{block}.mlp")
        if spec.form.layer_scale and rotary.kind is None:
            unified[f"{block}.gamma_1"] = unified.pop(f"{block}.ls1.gamma")
            unified[f"{block}.gamma_2"] = unified.pop(f"{block}.ls2.gamma")
    return unified


def _join_projections(arrays: Arrays, name: str) -> None:
    """Join the matrices and the biases of queries, keys and values, as far as they have some of their own."""
    ending = "_bias"
    if f"{name}.q_proj.weight" in arrays:
        matrices = [arrays.pop(f"{name}.{part}_proj.weight") for part in "qkv"]
        arrays[f"{name}.qkv.weight"] = np.concatenate(matrices)
        ending = "_proj.bias"
    biases = [arrays.pop(f"{name}.{part}{ending}", None) for part in "qkv"]
    if biases[0] is None:
        return
    joined = [np.zeros_like(biases[0]) if bias is None else bias for bias in biases]
    arrays[f"{name}.qkv.bias"] = np.concatenate(joined)


def _divide_queries(arrays: Arrays, name: str, head_width: int) -> None:
    for part in _PARTS:
        parameter = f"{name}.q_norm.{part}"
        if parameter in arrays:
            arrays[parameter] = arrays[parameter] * np.float32(head_width**-0.5)


def _separate_pairs(arrays: Arrays, name: str, heads: int) -> None:
    """Move the second features of all pairs, which stand beside the first, behind these in queries and keys.

    The products of queries and keys stay the same, because both are reordered alike.
    """
    weight = arrays[f"{name}.qkv.weight"]
    rows = np.arange(len(weight)).reshape(3, heads, -1)
    order = np.arange(rows.shape[2]).reshape(-1, 2).T.ravel()
    # values stay as they are
    rows[:2] = rows[:2, :, order]
    for part in _PARTS:
        if f"{name}.qkv.{part}" in arrays:
            arrays[f"{name}.qkv.{part}"] = arrays[f"{name}.qkv.{part}"][rows.ravel()]
        for norm in ("q_norm", "k_norm"):
            if f"{name}.{norm}.{part}" in arrays:
                arrays[f"{name}.{norm}.{part}"] = arrays[f"{name}.{norm}.{part}"][order]


def _split_gate(arrays: Arrays, name: str) -> None:
    """Split the first layer of an MLP, whose first half is the gate."""
    for part in _PARTS:
        if f"{name}.fc1.{part}" in arrays:
            gate, values = np.split(arrays.pop(f"{name}.fc1.{part}"), 2)
            arrays[f"{name}.fc1_g.{part}"] = gate
            arrays[f"{name}.fc1_x.{part}"] = values
