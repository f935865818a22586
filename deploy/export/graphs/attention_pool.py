"""The learned query that pools the tokens of SigLIP's ViTs, as nodes of an ONNX graph (timm's ``AttentionPoolLatent``).

Shapes: B images, L tokens of D features, n heads of d features.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ehm.config.encoders import VitForm
from ehm.deploy.export.graphs.encoder import AttentionSizes, EncoderGraph
from ehm.deploy.export.graphs.mlp import Activation, add_mlp
from ehm.storage.arrays import Arrays

__all__ = ["add_attention_pool"]

_NAME = "attn_pool"


def add_attention_pool(graph: EncoderGraph, tokens: str, sizes: AttentionSizes, form: VitForm, output: str) -> str:
    """Add tokens (B, L, D) -> what the query takes of them, under an MLP: (B, D)."""
    heads = sizes.heads
    head_width = sizes.width // heads
    query = graph.add_constant(f"{_NAME}.query", _compute_query(graph.arrays, heads))
    both = graph.add_linear(f"{_NAME}.kv", tokens)
    shape = graph.add_integers(f"{_NAME}.heads", 0, sizes.length, 2 * heads, head_width)
    split = graph.add_node("Reshape", [both, shape], f"{_NAME}/heads")
    split = graph.add_node("Transpose", [split], f"{_NAME}/kv", perm=[0, 2, 1, 3])
    key = f"{_NAME}/key"
    value = f"{_NAME}/value"
    graph.add_node("Split", [split, graph.add_integers(f"{_NAME}.parts", heads, heads)], key, value, axis=1)
    scores = graph.add_scores(_NAME, query, key)
    mixed = graph.add_mixture(_NAME, scores, value, AttentionSizes(_NAME, 1, sizes.width, heads))
    mixed = graph.add_node("Reshape", [mixed, graph.add_integers(f"{_NAME}.row", 0, sizes.width)], f"{_NAME}/row")
    pooled = graph.add_linear(f"{_NAME}.proj", mixed)
    normed = graph.add_norm(f"{_NAME}.norm", pooled, f"{_NAME}.norm/norm")
    refined = add_mlp(graph, f"{_NAME}.mlp", normed, _choose_activation(form))
    return graph.add_node("Add", [pooled, refined], output)


def _compute_query(arrays: Arrays, heads: int) -> NDArray[np.float32]:
    """Return the query, which is the same for all images, divided by sqrt(d): (1, n, 1, d).

    Its sums are exact, so that they are the same on every machine.
    """
    latent = arrays[f"{_NAME}.latent"].ravel().astype(np.float64)
    products = arrays[f"{_NAME}.q.weight"] * latent
    sums = np.array([math.fsum(row) for row in products]) + arrays[f"{_NAME}.q.bias"]
    query = sums.reshape(1, heads, 1, -1)
    return (query / math.sqrt(query.shape[3])).astype(np.float32)


def _choose_activation(form: VitForm) -> Activation:
    """Return the activation of the MLP behind the query, which has no gate even if those of the blocks have one."""
    if form.mlp in ("swiglu", "swiglu_packed"):
        return "gelu"
    return form.mlp
