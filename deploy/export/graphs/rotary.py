"""Rotary positions as nodes of an ONNX graph: queries and keys are turned by constants.

The tokens before the patches have the angle 0, which leaves them as they are.

Shapes: B images, N patches, P tokens before them, L = P + N, n heads of d features.
"""

from __future__ import annotations

import numpy as np

from ehm.config.encoders import VitSpec
from ehm.deploy.export.graphs.nodes import Nodes
from ehm.models.rotary import compute_angles

__all__ = ["add_angles", "add_rotation"]

_COSINES = "rotary.cosines"
_SINES = "rotary.sines"


def add_angles(graph: Nodes, spec: VitSpec) -> None:
    """Add the constants that :func:`add_rotation` takes in every block of a ViT of ``spec``: (L, d) each."""
    width = spec.width // spec.heads
    prefix = np.zeros((spec.form.prefix_tokens, width // 2))
    angles = np.concatenate([prefix, compute_angles(spec.form.rotary, spec.grid, width)])
    sines = np.sin(angles)
    cosines = np.cos(angles)
    graph.add_constant(_COSINES, np.concatenate([cosines, cosines], axis=1).astype(np.float32))
    # the first feature of a pair loses what the second gains
    graph.add_constant(_SINES, np.concatenate([-sines, sines], axis=1).astype(np.float32))


def add_rotation(graph: Nodes, heads: str, spec: VitSpec) -> str:
    """Add queries or keys (B, n, L, d), whose pairs of features lie half a head apart, turned by the angles."""
    half = spec.width // spec.heads // 2
    first = f"{heads}/first"
    second = f"{heads}/second"
    graph.add_node("Split", [heads, graph.add_integers("rotary.halves", half, half)], first, second, axis=3)
    swapped = graph.add_node("Concat", [second, first], f"{heads}/swapped", axis=3)
    turned = graph.add_node("Mul", [swapped, _SINES], f"{heads}/turned")
    still = graph.add_node("Mul", [heads, _COSINES], f"{heads}/still")
    return graph.add_node("Add", [still, turned], f"{heads}/rotated")
