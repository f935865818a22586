"""A descriptor of retrieval above an encoder, as nodes of an ONNX graph (DELG's global descriptor).

Shapes: B images, N patches, W features of a token, D of a descriptor.
"""

from __future__ import annotations

import numpy as np

from ehm.deploy.export.graphs.encoder import EncoderGraph
from ehm.storage.arrays import Arrays

__all__ = ["write_descriptor"]

_EPSILON = 1e-6
"""Least value of a feature before GeM's power, of which a negative number has none."""
_LEAST_LENGTH = 1e-12
"""Least length that a descriptor is divided by, as in torch's ``normalize``."""


def write_descriptor(graph: EncoderGraph, arrays: Arrays) -> None:
    """Add ``images`` -> ``features`` (B, D), rows of length 1, and ``patches`` if the graph is asked for them.

    ``arrays`` are the network's parameters beside the encoder: ``power`` of GeM, without which the encoder's own
    pooling stands in its place, and ``whitening``, which may be missing too.
    """
    tokens = graph.add_tokens("images")
    if "patches" in graph.outputs:
        graph.add_patch_output(graph.add_normed_patches(tokens))
    if "features" not in graph.outputs:
        return
    if "power" in arrays:
        pooled = _add_generalised_mean(graph, tokens, arrays)
    else:
        pooled = graph.pool_tokens(tokens, "pool/norm")
    if "whitening.weight" in arrays:
        weight = graph.add_constant("whitening.weight", arrays["whitening.weight"])
        bias = graph.add_constant("whitening.bias", arrays["whitening.bias"])
        pooled = graph.add_node("Gemm", [pooled, weight, bias], "whitening/sum", transB=1)
    squares = graph.add_node("Mul", [pooled, pooled], "length/squares")
    total = graph.add_node("ReduceSum", [squares, graph.add_integers("length.axis", 1)], "length/total", keepdims=1)
    length = graph.add_node("Sqrt", [total], "length/root")
    length = graph.add_node("Max", [length, graph.add_number("length.least", _LEAST_LENGTH)], "length/length")
    graph.add_node("Div", [pooled, length], "features")


def _add_generalised_mean(graph: EncoderGraph, tokens: str, arrays: Arrays) -> str:
    """Add tokens -> the generalised mean of the patches behind the last norm (Radenovic et al., 2019): (B, W)."""
    power = arrays["power"]
    patches = graph.add_normed_patches(tokens)
    positive = graph.add_node("Max", [patches, graph.add_number("gem.least", _EPSILON)], "gem/positive")
    raised = graph.add_node("Pow", [positive, graph.add_constant("power", power)], "gem/raised")
    mean = graph.add_mean(raised, "gem/mean")
    return graph.add_node("Pow", [mean, graph.add_constant("gem.root", np.float32(1) / power)], "gem/pooled")
