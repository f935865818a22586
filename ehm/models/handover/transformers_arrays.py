"""The arrays of an encoder under the names of transformers' files, from timm's, which are ours.

Since its fifth version transformers' modules have other names, but it reads and writes files with the older ones, which
these are. The other direction is a table of :mod:`ehm.models.published`.

Shapes: D features of a token, N positions.
"""

from __future__ import annotations

import re

import numpy as np

from ehm.config.encoders import SwinSpec, VitSpec
from ehm.models.handover.transformers_config import TransformersConfig
from ehm.models.weights import Weights
from ehm.storage.arrays import Arrays, add_prefix

__all__ = ["rename_for_transformers"]

Rules = tuple[tuple[str, str], ...]
"""Patterns of our names and what takes their place, applied one after another."""

_EMBEDDINGS: Rules = (
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^reg_token$", "embeddings.register_tokens"),
    (r"^mask_token$", "embeddings.mask_token"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"^fc_norm\.", "pooler.layernorm."),
)
_HEADS: Rules = (
    (r"\.attn\.q_proj\.", ".attention.attention.query."),
    (r"\.attn\.k_proj\.", ".attention.attention.key."),
    (r"\.attn\.v_proj\.", ".attention.attention.value."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
)
_BERT: Rules = (
    *_HEADS,
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
"""A block of BERT's form, of which the older ViTs are made."""
_LAYERS: Rules = ((r"^blocks\.(\d+)\.", r"encoder.layer.\1."),)
_VIT: Rules = (*_EMBEDDINGS, *_LAYERS, *_BERT)
_BEIT: Rules = (
    *_VIT,
    (
        r"\.attn\.relative_position_bias_table$",
        ".attention.attention.relative_position_bias.relative_position_bias_table",
    ),
    (r"\.(gamma_|ls)(\d)(\.gamma)?$", r".lambda_\2"),
)
_DINOV2: Rules = (
    *_EMBEDDINGS,
    *_LAYERS,
    *_HEADS,
    (r"\.ls(\d)\.gamma$", r".layer_scale\1.lambda1"),
)
_DINOV3: Rules = (
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings."),
    (r"^(cls_token|mask_token)$", r"embeddings.\1"),
    (r"^reg_token$", "embeddings.register_tokens"),
    (r"^blocks\.(\d+)\.", r"layer.\1."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.attn\.", ".attention."),
    (r"\.gamma_(\d)$", r".layer_scale\1.lambda1"),
    (r"\.mlp\.fc1_g\.", ".mlp.gate_proj."),
    (r"\.mlp\.fc1(_x)?\.", ".mlp.up_proj."),
    (r"\.mlp\.fc2\.", ".mlp.down_proj."),
)
_CLIP: Rules = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding.weight"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm_pre\.", "pre_layrnorm."),  # the name is misspelt in transformers
    (r"^(fc_)?norm\.", "post_layernorm."),
    (r"^blocks\.(\d+)\.", r"encoder.layers.\1."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"\.attn\.proj\.", ".self_attn.out_proj."),
    (r"\.attn\.", ".self_attn."),
)
_SWIN: Rules = (
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^patch_embed\.norm\.", "embeddings.norm."),
    (r"^layers\.", "encoder.layers."),
    (r"\.attn\.relative_position_bias_table$", ".attention.self.relative_position_bias_table"),
    (r"\.attn\.q_proj\.", ".attention.self.query."),
    (r"\.attn\.k_proj\.", ".attention.self.key."),
    (r"\.attn\.v_proj\.", ".attention.self.value."),
    *_BERT,
    (r"^norm\.", "layernorm."),
)
_RULES: dict[str, Rules] = {
    "vit": _VIT,
    "beit": _BEIT,
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
    "dinov3_vit": _DINOV3,
    "clip_vision_model": _CLIP,
    "swin": _SWIN,
}
_CLASSIFIER = "classifier."
_TOWER = "vision_model."
"""Before the names of CLIP's image tower."""
_DOWNSAMPLE = re.compile(r"^layers\.(\d+)\.downsample\.")


def rename_for_transformers(weights: Weights, config: TransformersConfig) -> Arrays:
    """Return the encoder in ``weights`` under the names of transformers' network that ``config`` describes.

    Its classifier goes with it if ``config.has_classifier``.
    """
    spec = weights.spec
    assert spec is not None
    head = f"{spec.classifier}."
    encoder = {}
    classifier = {}
    for name, array in weights.arrays.items():
        if name.startswith(head):
            classifier[_CLASSIFIER + name.removeprefix(head)] = array
        else:
            encoder[name] = array
    encoder = _split_heads(encoder)
    if isinstance(spec, SwinSpec):
        encoder = _move_downsampling(encoder)
    else:
        encoder = _prepare_vit(encoder, spec, config.model_type)
    renamed = {}
    for name, array in encoder.items():
        for pattern, replacement in _RULES[config.model_type]:
            name = re.sub(pattern, replacement, name)
        renamed[name] = array
    if config.model_type == "clip_vision_model":
        return add_prefix(renamed, _TOWER)
    if config.has_classifier:
        return add_prefix(renamed, f"{config.model_type}.") | classifier
    return renamed


def _prepare_vit(arrays: Arrays, spec: VitSpec, model_type: str) -> Arrays:
    """Give a ViT, whose heads are split, the parameters and shapes that transformers' network has."""
    prepared = dict(arrays)
    width = spec.width
    if model_type == "vit":
        # the layer on the class token that such networks end with: here it changes nothing
        prepared["pooler.dense.weight"] = np.eye(width, dtype=np.float32)
        prepared["pooler.dense.bias"] = np.zeros(width, np.float32)
    if "pos_embed" in prepared:
        prepared = _leave_position_to_class(prepared, spec)
    if model_type == "beit":
        # a bias of keys adds the same to all scores of a query, and softmax takes it off
        prepared = {name: array for name, array in prepared.items() if not name.endswith("k_proj.bias")}
    elif model_type == "clip_vision_model":
        prepared["cls_token"] = prepared["cls_token"][0, 0]
        prepared["pos_embed"] = prepared["pos_embed"][0]
    elif model_type == "dinov3_vit":
        prepared.setdefault("reg_token", np.zeros((1, 0, width), np.float32))
        prepared["mask_token"] = np.zeros((1, 1, width), np.float32)
        _add_layer_scale(prepared, spec, "blocks.{}.gamma_{}")
        if spec.form.mlp == "swiglu_packed":
            _part_gates(prepared, spec)
    elif model_type in ("dinov2", "dinov2_with_registers"):
        _add_layer_scale(prepared, spec, "blocks.{}.ls{}.gamma")
        if spec.form.mlp.startswith("swiglu"):
            _pack_gates(prepared, spec)
        if model_type == "dinov2_with_registers":
            prepared["mask_token"] = np.zeros((1, width), np.float32)
    return prepared


def _split_heads(arrays: Arrays) -> Arrays:
    """Part the joint matrices of queries, keys and values, and name all biases of them after their matrices."""
    split = {}
    for name, array in arrays.items():
        stem, found, part = name.rpartition(".attn.qkv.")
        if found:
            for head, piece in zip("qkv", np.split(array, 3), strict=True):
                split[f"{stem}.attn.{head}_proj.{part}"] = piece
            continue
        split[re.sub(r"\.attn\.([qv])_bias$", r".attn.\1_proj.bias", name)] = array
    return split


def _leave_position_to_class(arrays: Arrays, spec: VitSpec) -> Arrays:
    """Return ``arrays`` with positions of the class token and the patches alone: (1, 1 + N, D).

    A register's position, which is the same in every image, is added to the register; an absent one is zero.
    """
    placed = dict(arrays)
    positions = arrays["pos_embed"]
    form = spec.form
    if form.position_tokens == 0:
        placed["pos_embed"] = np.pad(positions, ((0, 0), (1, 0), (0, 0)))
    elif form.registers:
        placed["reg_token"] = arrays["reg_token"] + positions[:, 1 : form.prefix_tokens]
        placed["pos_embed"] = np.concatenate([positions[:, :1], positions[:, form.prefix_tokens :]], axis=1)
    return placed


def _add_layer_scale(arrays: Arrays, spec: VitSpec, name: str) -> None:
    """Add factors of one, which change nothing, where a network has factors and the encoder has none."""
    for block in range(spec.depth):
        for branch in (1, 2):
            arrays.setdefault(name.format(block, branch), np.ones(spec.width, np.float32))


def _part_gates(arrays: Arrays, spec: VitSpec) -> None:
    """Part the first layers of MLPs into those of the gate and of what it gates."""
    for block in range(spec.depth):
        for part in ("weight", "bias"):
            gate, gated = np.split(arrays.pop(f"blocks.{block}.mlp.fc1.{part}"), 2)
            arrays[f"blocks.{block}.mlp.fc1_g.{part}"] = gate
            arrays[f"blocks.{block}.mlp.fc1_x.{part}"] = gated


def _pack_gates(arrays: Arrays, spec: VitSpec) -> None:
    """Join the first layers of MLPs, and give them DINOv2's names."""
    for block in range(spec.depth):
        stem = f"blocks.{block}.mlp."
        for part in ("weight", "bias"):
            joint = arrays.pop(f"{stem}fc1.{part}", None)
            if joint is None:
                joint = np.concatenate([arrays.pop(f"{stem}fc1_g.{part}"), arrays.pop(f"{stem}fc1_x.{part}")])
            arrays[f"{stem}weights_in.{part}"] = joint
            arrays[f"{stem}weights_out.{part}"] = arrays.pop(f"{stem}fc2.{part}")


def _move_downsampling(arrays: Arrays) -> Arrays:
    """Move a Swin's merging of tokens to the end of a stage: timm has it at the beginning of the next one."""
    moved = {}
    for name, array in arrays.items():
        moved[_DOWNSAMPLE.sub(lambda stage: f"layers.{int(stage[1]) - 1}.downsample.", name)] = array
    return moved
