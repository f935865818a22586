"""Assemble a trained network as plain arrays, which any framework can rebuild, and which a graph is written from.

Its encoder always sees whole images: masks exist in pretraining only.

Shapes: N = h * w patches, D features, C classes.
"""

from __future__ import annotations

from dataclasses import replace

from ehm.config import ModelSource, RetrievalConfig, SegmentationConfig
from ehm.config.encoders import VitSpec
from ehm.errors import ConfigError
from ehm.models.fitting import fit_arrays, resize_weights
from ehm.models.heads import Head, select_labels
from ehm.models.parameters import list_classifier_shapes, list_encoder_shapes
from ehm.models.pyramid import STRIDES, round_stride
from ehm.models.weights import Pool, Weights
from ehm.storage.arrays import Arrays, add_prefix

__all__ = ["assemble_network", "find_window"]

_PYRAMID = "pyramid.encoder."
"""Before the names of a segmenter's encoder."""


def assemble_network(weights: Weights, source: ModelSource, head: Head = "auto") -> Weights | None:
    """Return the network in ``weights`` for images of ``source.image_size``, with the parts that ``head`` asks for.

    The ``arrays`` of the result (float32) are all parameters of the network and nothing else. Those of an encoder have
    timm's names: ``norm.*`` over all tokens, or ``fc_norm.*`` after the pooling; with labels a linear classifier
    (``head.*``, a Swin's ``head.fc.*``), or a linear probe: ``running_mean`` and ``running_var`` of a batch norm
    without affine (eps 1e-6), then ``weight`` and ``bias``. The encoder of an embedder has ``encoder.`` before its
    names, that of a whole segmenter, which ``head`` auto takes, ``pyramid.encoder.``; ``spec`` is the encoder's. The
    ``labels`` of its provenance are those of its logits or scores, empty if it gives none.

    Returns None for networks that only a framework builds: those that only timm has, and the eyes of a language model
    unless ``head`` asks for their encoder. Raises CheckpointError as :func:`ehm.models.heads.select_labels` does, and
    if weights are missing, do not fit, or would be left out; ConfigError if a segmenter takes no images of
    ``source.image_size``.
    """
    provenance = weights.provenance
    # auto asks for their visual tokens, which a resampler computes
    if provenance.kind == "answerer" and head == "auto":
        return None
    is_segmenter = provenance.kind == "segmenter" and head == "auto"
    labels = () if is_segmenter else select_labels(provenance, head)
    if weights.spec is None:
        return None
    if is_segmenter:
        return _take_segmenter(weights, source)
    provenance = replace(provenance, labels=labels)
    if provenance.kind == "embedder":
        provenance = replace(provenance, pool=_read_descriptor_pool(weights))
    resized = resize_weights(replace(weights, provenance=provenance), source)
    arrays = _fit_encoder(resized, len(labels))
    if provenance.kind == "embedder":
        arrays = add_prefix(arrays, "encoder.") | _take_head(weights, "encoder.", "arcface.")
    return replace(resized, arrays=arrays)


def _take_segmenter(weights: Weights, source: ModelSource) -> Weights:
    """Return the whole segmenter in ``weights`` for images of :func:`find_window`.

    The ``spec`` of the result is the encoder's, which sees images in a size of its own if the side of its patches is no
    power of two.
    """
    assert weights.checkpoint is not None
    metadata = weights.checkpoint.metadata
    config = SegmentationConfig.model_validate(metadata["config"])
    size = find_window(weights, source)
    seen = size
    if isinstance(weights.spec, VitSpec):
        patch_size = weights.spec.patch_size
        stride = round_stride(patch_size)
        seen = size[0] * patch_size // stride, size[1] * patch_size // stride
    # the windows of a Swin are those of its training, as far as they were chosen
    resized = resize_weights(weights, config.model.model_copy(update={"init": source.init, "image_size": seen}))
    arrays = add_prefix(_fit_encoder(resized, 0), _PYRAMID) | _take_head(weights, _PYRAMID, "auxiliary.")
    provenance = replace(weights.provenance, labels=tuple(metadata["classes"]))
    return replace(resized, arrays=arrays, provenance=provenance)


def find_window(weights: Weights, source: ModelSource) -> tuple[int, int]:
    """Return the size of the images that a segmenter sees: ``source.image_size``, or else the crops of its training.

    Raises ConfigError if its sides are no multiples of the widest stride.
    """
    assert weights.checkpoint is not None
    config = SegmentationConfig.model_validate(weights.checkpoint.metadata["config"])
    size = source.image_size or config.crop_size
    if size[0] % STRIDES[-1] or size[1] % STRIDES[-1]:
        raise ConfigError(f"model.image_size {list(size)}: a segmenter's is a multiple of {STRIDES[-1]}")
    return size


def _read_descriptor_pool(weights: Weights) -> Pool:
    """Return how the encoder of a descriptor pools; the default, if the generalised mean stands in its place."""
    assert weights.checkpoint is not None
    config = RetrievalConfig.model_validate(weights.checkpoint.metadata["config"])
    return "avg" if config.pool == "gem" else config.pool


def _fit_encoder(weights: Weights, classes: int) -> Arrays:
    """Return the arrays of the encoder, and of its classifier of ``classes`` if there are any."""
    assert weights.spec is not None
    last_norm = "fc_norm" if weights.has_norm_after_pooling else "norm"
    shapes = list_encoder_shapes(weights.spec, last_norm, weights.provenance.pool)
    if classes:
        classifier = weights.spec.classifier
        is_probe = f"{classifier}.1.weight" in weights.arrays
        shapes |= list_classifier_shapes(classifier, classes, weights.spec.features, is_probe)
    return fit_arrays(shapes, weights.arrays, weights.provenance.origin)


def _take_head(weights: Weights, encoder: str, left_out: str) -> Arrays:
    """Return what a checkpoint has beside its ``encoder``, but for counters and for what is only trained with."""
    assert weights.checkpoint is not None
    arrays = {}
    for name, array in weights.checkpoint.model.items():
        if not name.startswith((encoder, left_out)) and not name.endswith("num_batches_tracked"):
            arrays[name] = array
    return arrays
