"""Adapt the patch embedding of an encoder to images of other channels than it was trained on.

Shapes: C channels of the weights, K channels of the images, D features, p x p pixels of a patch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.config.sections import ChannelRule
from ehm.models.weights import Weights

__all__ = ["adapt_channels", "adapt_kernel", "describe_adaptation"]

PATCHES = "patch_embed.proj.weight"
"""Name of the kernel of the patch embedding (D, C, p, p), in all encoders that ehm builds."""
_WORDS = {
    "mean": "each has the mean of theirs",
    "repeat": "theirs are repeated",
    "first": "the first ones are kept, and further ones begin at zero",
}


def adapt_kernel(kernel: NDArray[Any], channels: int, rule: ChannelRule) -> NDArray[Any]:
    """Return a kernel (D, K, p, p) for ``channels`` = K of images, made of one for C: (D, C, p, p).

    ``mean`` gives each channel the mean of all, and ``repeat`` theirs in turn (as timm does), both times C / K, so that
    features keep their size; ``first`` keeps the first ones as they are, and further channels begin at zero.
    """
    own = kernel.shape[1]
    if rule == "first":
        adapted = np.zeros((kernel.shape[0], channels, *kernel.shape[2:]), kernel.dtype)
        kept = min(own, channels)
        adapted[:, :kept] = kernel[:, :kept]
        return adapted
    if rule == "mean":
        spread = kernel.mean(axis=1, keepdims=True, dtype=np.float64).repeat(channels, axis=1)
    else:
        spread = kernel[:, np.arange(channels) % own].astype(np.float64)
    return (spread * (own / channels)).astype(kernel.dtype)


def adapt_channels(weights: Weights, channels: int, rule: ChannelRule) -> Weights:
    """Return ``weights``, which have a spec, for images of ``channels``, with a note on what was changed."""
    spec = weights.spec
    assert spec is not None
    if spec.channels == channels:
        return weights
    arrays = {**weights.arrays, PATCHES: adapt_kernel(weights.arrays[PATCHES], channels, rule)}
    note = describe_adaptation(spec.channels, channels, rule)
    provenance = replace(weights.provenance, notes=(*weights.provenance.notes, note))
    return replace(weights, arrays=arrays, spec=replace(spec, channels=channels), provenance=provenance)


def describe_adaptation(own: int, channels: int, rule: ChannelRule) -> str:
    """Return a note that says how a patch embedding of ``own`` channels was adapted to ``channels``."""
    return (
        f"the patch embedding is adapted from {own} to {channels} channels: {_WORDS[rule]} "
        f"(model.adapt_channels {rule})"
    )
