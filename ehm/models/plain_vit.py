"""A trained plain ViT as all of its arrays, ready to be rebuilt by any framework, or written as a graph without one.

Always the encoder of the whole image: a mask exists in pretraining only.

Shapes: N = h * w patches, D features, C classes.
"""

from __future__ import annotations

from dataclasses import replace

from ehm.config import ModelSource
from ehm.config.encoders import VitSpec
from ehm.models.fitting import fit_arrays, resize_weights
from ehm.models.heads import Head, select_labels
from ehm.models.weights import Weights

__all__ = ["assemble_plain_vit"]


def assemble_plain_vit(weights: Weights, source: ModelSource, head: Head = "auto") -> Weights | None:
    """Return the plain ViT in ``weights`` for images of ``source.image_size``, with the classifier that ``head`` takes.

    The ``arrays`` of the result (float32) are all parameters of the network and nothing else, under timm's names: the
    encoder with its positions for ``spec``'s grid; ``norm.*`` over all tokens, or ``fc_norm.*`` behind the pooling;
    with labels ``head.weight`` (C, D) and ``head.bias``, or those of a linear probe: ``head.0.running_mean`` and
    ``running_var`` of a batch norm without affine (eps 1e-6), then ``head.1.weight`` and ``bias``. Norms have eps 1e-6.
    The ``labels`` of its provenance are those of its logits, empty if it gives none.

    None for what only a framework builds: a Swin, a ViT of another form, a network of timm's, a descriptor, a segmenter
    or the eyes of a language model that are not asked for their encoder. Raises CheckpointError as
    :func:`ehm.models.heads.select_labels` does, if weights are missing or do not fit, and if a file's ViT has more than
    a plain one.
    """
    provenance = weights.provenance
    # what is meant is their scores or visual tokens, which UperNet or a resampler computes
    if provenance.kind in ("segmenter", "answerer") and head == "auto":
        return None
    labels = select_labels(provenance, head)
    spec = weights.spec
    if not isinstance(spec, VitSpec) or not spec.is_plain or provenance.kind == "embedder":
        return None
    resized = resize_weights(weights, source)
    assert isinstance(resized.spec, VitSpec)
    last_norm = "norm"
    if "fc_norm.weight" in resized.arrays:
        last_norm = "fc_norm"
    shapes = _list_encoder_shapes(resized.spec, last_norm)
    if labels:
        is_probe = "head.1.weight" in resized.arrays
        shapes |= _list_classifier_shapes(len(labels), spec.width, is_probe)
    arrays = fit_arrays(shapes, resized.arrays, provenance.origin)
    return replace(resized, arrays=arrays, provenance=replace(provenance, labels=labels))


def _list_encoder_shapes(spec: VitSpec, norm: str) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a plain ViT's parameters, as timm gives them."""
    width = spec.width
    hidden = round(width * spec.mlp_ratio)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + spec.patches, width),
        "patch_embed.proj.weight": (width, 3, spec.patch_size, spec.patch_size),
        "patch_embed.proj.bias": (width,),
    }
    layers: dict[str, tuple[int, ...]] = {
        "norm1": (width,),
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "norm2": (width,),
        "mlp.fc1": (hidden, width),
        "mlp.fc2": (width, hidden),
    }
    for index in range(spec.depth):
        for name, shape in layers.items():
            # all of them have a bias for each row
            shapes[f"blocks.{index}.{name}.weight"] = shape
            shapes[f"blocks.{index}.{name}.bias"] = shape[:1]
    return {**shapes, f"{norm}.weight": (width,), f"{norm}.bias": (width,)}


def _list_classifier_shapes(classes: int, width: int, is_probe: bool) -> dict[str, tuple[int, ...]]:
    if is_probe:
        # the batch norm of a linear probe has no weights of its own
        return {
            "head.0.running_mean": (width,),
            "head.0.running_var": (width,),
            "head.1.weight": (classes, width),
            "head.1.bias": (classes,),
        }
    return {"head.weight": (classes, width), "head.bias": (classes,)}
