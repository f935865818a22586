"""The outputs that an exported model can have, and which of them its weights can give.

Shapes: B images, D features, C classes; K visual tokens, W features of a language model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ehm.errors import CheckpointError
from ehm.models.weights import Provenance

__all__ = ["Forward", "Head", "Output", "Reference", "list_outputs", "select_labels"]

Head = Literal["auto", "classifier", "features", "patches", "multi"]
Output = Literal["logits", "features", "patches", "scores", "visual_tokens"]
Forward = Callable[[NDArray[np.float32]], dict[str, NDArray[np.float32]]]
"""A network: normalised images (B, 3, H, W) -> its outputs by name.

They are any of ``logits`` (B, C); ``features`` (B, D), what the classifier sees, or a descriptor; and ``patches``
(B, D, h, w), every patch token after the last norm. A segmenter gives ``scores`` (B, C, H, W), the logits of each
pixel, and no other; the eyes of a language model give ``visual_tokens`` (B, K, W), and no other.
"""
Reference = tuple[Forward, str]
"""A framework's own computation of a network, and what computes it: ``torch 2.14.1, cpu, float32``."""

_HEADLESS = ("features", "patches")
"""Heads that leave a classifier out."""
_WITHOUT_CLASSIFIER = {
    "file": "holds no classifier (head.weight); --head features exports the encoder",
    "timm": "timm gives it no classifier; --head features exports the encoder",
    "pretrain": "a pretrained encoder has no classifier; ehm finetune gives it one",
    "answerer": "the eyes of a language model have no classifier; --head auto exports their visual tokens",
    "embedder": "an embedder has no classifier; ehm finetune gives it one",
    "segmenter": "a segmenter has no classifier of images; --head auto exports its scores",
    "detector": "a detector has no classifier of images; --head auto exports it whole",
}
"""The reasons, by kind of model, why it has no classifier, and the remedies."""


def select_labels(provenance: Provenance, head: Head) -> tuple[str, ...]:
    """Return the labels of the logits that ``head`` asks for: ``auto`` and ``multi`` take a classifier if there is one.

    Raises CheckpointError if a classifier is asked for and there is none, or if a detector is asked for more than its
    features.
    """
    if head in _HEADLESS:
        return ()
    # a detector's checkpoint is exported whole, unless its encoder alone is asked for
    insists = head == "classifier" or provenance.kind == "detector"
    if insists and not provenance.labels:
        raise CheckpointError(f"{provenance.origin}: {_WITHOUT_CLASSIFIER[provenance.kind]}")
    return provenance.labels


def list_outputs(head: Head, has_classifier: bool) -> tuple[Output, ...]:
    """Return the outputs, in order, that ``head`` means for a model; ``multi`` is everything that it can give."""
    if head == "patches":
        return ("patches",)
    if head == "multi":
        outputs: tuple[Output, ...] = ("features", "patches")
        return ("logits", *outputs) if has_classifier else outputs
    return ("logits",) if has_classifier else ("features",)
