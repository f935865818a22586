"""Encoders as transformers' ``config.json`` describes them, by its ``model_type``.

Names and defaults are those of ``transformers/models/*/configuration_*.py``. A setting that asks for an encoder that
ehm does not have is a CheckpointError that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ehm.models.published.facts import Activation, PublishedFacts
from ehm.models.published.hub_models import HubModel
from ehm.models.published.settings import Settings

__all__ = ["MODEL_TYPES", "describe_transformers"]

_ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
"""Our words for the activations of an MLP without gates."""


def describe_transformers(settings: Settings, facts: PublishedFacts) -> HubModel:
    """Return the encoder in transformers' ``config.json``, of whose layout ``facts`` are known.

    Raises CheckpointError if its ``model_type`` is none of :data:`MODEL_TYPES`, or a setting asks for another encoder.
    """
    model_type = settings.text("model_type")
    if model_type not in MODEL_TYPES:
        known = ", ".join(MODEL_TYPES)
        raise settings.refuse_setting(
            "model_type", f"ehm has no such encoder; it reads {known}, and timm's config.json"
        )
    if settings.is_section("vision_config"):
        # a network of two towers has the settings of each below it
        settings = settings.section("vision_config")
    if settings.count("num_channels", 3) != 3:
        raise settings.refuse_setting("num_channels", "encoders of 3 channels load")
    return MODEL_TYPES[model_type](settings, facts)


def _describe_vit(settings: Settings, facts: PublishedFacts) -> HubModel:
    """Describe a ViT by the settings that most of transformers' ViTs share."""
    known = replace(
        facts,
        norm_epsilon=settings.number("layer_norm_eps", 1e-12),
        activation=_read_activation(settings, "gelu"),
        assumed="",
    )
    return _read_sizes(settings, known)


def _describe_msn(settings: Settings, facts: PublishedFacts) -> HubModel:
    model = _describe_vit(settings, facts)
    return replace(model, facts=replace(model.facts, norm_epsilon=settings.number("layer_norm_eps", 1e-6)))


def _describe_beit(settings: Settings, facts: PublishedFacts) -> HubModel:
    if settings.flag("use_absolute_position_embeddings", False):
        raise settings.refuse_setting(
            "use_absolute_position_embeddings", "ehm's encoders with BEiT's blocks have relative positions alone"
        )
    return _describe_vit(settings, facts)


def _describe_dinov2(settings: Settings, facts: PublishedFacts) -> HubModel:
    model = _describe_msn(settings, facts)
    return replace(model, patch_size=_read_patch_size(settings, 14))


def _describe_dinov3(settings: Settings, facts: PublishedFacts) -> HubModel:
    if settings.flag("key_bias", False):
        raise settings.refuse_setting("key_bias", "keys have no bias in ehm's encoders with rotary positions")
    activation: Activation = "gelu"
    if not settings.flag("use_gated_mlp", False):
        activation = _read_activation(settings, "gelu")
    elif settings.text("hidden_act", "gelu") != "silu":
        raise settings.refuse_setting("hidden_act", "the gates of ehm's encoders have silu")
    rotary = facts.rotary.model_copy(update={"temperature": settings.number("rope_theta", 100.0)})
    known = replace(
        facts, norm_epsilon=settings.number("layer_norm_eps", 1e-5), activation=activation, rotary=rotary, assumed=""
    )
    return _read_sizes(settings, known, heads=6, width=384)


def _describe_clip(settings: Settings, facts: PublishedFacts) -> HubModel:
    model = _describe_vit(settings, facts)
    known = replace(
        model.facts,
        norm_epsilon=settings.number("layer_norm_eps", 1e-5),
        activation=_read_activation(settings, "quick_gelu"),
    )
    return replace(model, facts=known, patch_size=_read_patch_size(settings, 32))


def _describe_siglip(settings: Settings, facts: PublishedFacts) -> HubModel:
    model = _describe_vit(settings, facts)
    known = replace(
        model.facts,
        norm_epsilon=settings.number("layer_norm_eps", 1e-6),
        activation=_read_activation(settings, "gelu_pytorch_tanh"),
    )
    size = model.image_size
    if "num_patches" in settings:
        # SigLIP 2 for images of any proportions: the number of patches that its positions are for
        side = round(settings.count("num_patches") ** 0.5) * settings.count("patch_size", 16)
        size = (side, side)
    return replace(model, facts=known, image_size=size)


def _describe_aimv2(settings: Settings, facts: PublishedFacts) -> HubModel:
    if settings.flag("is_native", False):
        raise settings.refuse_setting("is_native", "positions that a network computes for every size are none of ehm's")
    if settings.text("hidden_act", "silu") != "silu":
        raise settings.refuse_setting("hidden_act", "the gates of ehm's encoders have silu")
    known = replace(facts, norm_epsilon=settings.number("rms_norm_eps", 1e-5), assumed="")
    return _read_sizes(settings, known, heads=8, width=1024, depth=24, patch_size=14)


def _describe_swin(settings: Settings, facts: PublishedFacts) -> HubModel:
    if settings.flag("use_absolute_embeddings", False):
        raise settings.refuse_setting("use_absolute_embeddings", "ehm's Swins have relative positions alone")
    if settings.text("hidden_act", "gelu") != "gelu":
        raise settings.refuse_setting("hidden_act", "ehm's Swins have gelu")
    if settings.number("layer_norm_eps", 1e-5) != 1e-5:
        raise settings.refuse_setting("layer_norm_eps", "ehm's Swins have 1e-05")
    return HubModel(
        facts,
        image_size=settings.pair("image_size") if "image_size" in settings else (224, 224),
        width=settings.count("embed_dim", 96),
        patch_size=_read_patch_size(settings, 4),
    )


MODEL_TYPES: Mapping[str, Callable[[Settings, PublishedFacts], HubModel]] = {
    "vit": _describe_vit,
    "deit": _describe_vit,
    "vit_mae": _describe_vit,
    "vit_msn": _describe_msn,
    "ijepa": _describe_vit,
    "beit": _describe_beit,
    "data2vec-vision": _describe_beit,
    "dinov2": _describe_dinov2,
    "dinov2_with_registers": _describe_dinov2,
    "dinov3_vit": _describe_dinov3,
    "clip": _describe_clip,
    "clip_vision_model": _describe_clip,
    "siglip": _describe_siglip,
    "siglip_vision_model": _describe_siglip,
    "siglip2": _describe_siglip,
    "siglip2_vision_model": _describe_siglip,
    "aimv2": _describe_aimv2,
    "aimv2_vision_model": _describe_aimv2,
    "swin": _describe_swin,
}
"""The encoders of transformers that ehm reads, by ``model_type``."""


def _read_sizes(
    settings: Settings,
    facts: PublishedFacts,
    heads: int = 12,
    width: int = 768,
    depth: int = 12,
    patch_size: int = 16,
) -> HubModel:
    """Return the sizes of an encoder under the names that transformers' ViTs share; numbers are their defaults."""
    return HubModel(
        facts,
        image_size=settings.pair("image_size") if "image_size" in settings else (224, 224),
        heads=settings.count("num_attention_heads", heads),
        width=settings.count("hidden_size", width),
        depth=settings.count("num_hidden_layers", depth),
        patch_size=_read_patch_size(settings, patch_size),
    )


def _read_activation(settings: Settings, default: str) -> Activation:
    name = settings.text("hidden_act", default)
    if name not in _ACTIVATIONS:
        raise settings.refuse_setting("hidden_act", f"ehm's encoders have {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _read_patch_size(settings: Settings, default: int) -> int:
    if "patch_size" not in settings:
        return default
    down, across = settings.pair("patch_size")
    if down != across:
        raise settings.refuse_setting("patch_size", "only square patches load")
    return down
