"""The network of transformers that computes what an encoder of ours does, and its ``config.json``.

Names of keys are those of ``transformers/models/*/configuration_*.py``. Where a network always resamples positions,
it takes square images alone, as it takes their grid for a square (``interpolate_pos_encoding``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ehm.config.encoders import PLAIN, EncoderSpec, SwinSpec, VitForm, VitSpec
from ehm.models.handover.refusal import NoSuchEncoderError
from ehm.models.weights import Pool, Weights

__all__ = ["ModelType", "TransformersConfig", "describe_transformers_folder"]

ModelType = Literal["vit", "beit", "dinov2", "dinov2_with_registers", "dinov3_vit", "clip_vision_model", "swin"]

_CLASSES: dict[ModelType, str] = {
    "vit": "ViTModel",
    "beit": "BeitModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
    "clip_vision_model": "CLIPVisionModel",
    "swin": "SwinModel",
}
_CLASSIFIERS: dict[ModelType, str] = {
    "vit": "ViTForImageClassification",
    "beit": "BeitForImageClassification",
    "swin": "SwinForImageClassification",
}
"""Networks whose classifier sees what ours sees: the class token, or the mean of the patches."""
_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}
"""transformers' names of the activations of an MLP without a gate."""
_SWIN_EPSILON = 1e-5
"""Epsilon of the norms of our Swins, as published."""

# what a form may have to be one of these networks; anything else has to be as in the plain ViT
_ANY = {"norm_epsilon", "mlp", "prefix_positions"}
_ALLOWED: dict[ModelType, set[str]] = {
    "vit": _ANY | {"bias"},
    "beit": _ANY | {"layer_scale"},
    "dinov2": _ANY | {"bias", "layer_scale"},
    "dinov2_with_registers": _ANY | {"bias", "layer_scale", "registers"},
    "dinov3_vit": _ANY | {"bias", "layer_scale", "registers", "rotary", "added_positions", "separate_heads"},
    "clip_vision_model": _ANY | {"norm_before"},
}
_GATED = {"dinov2", "dinov2_with_registers", "dinov3_vit"}
_SQUARE = {"beit", "dinov2", "dinov2_with_registers", "clip_vision_model"}


@dataclass(frozen=True)
class TransformersConfig:
    """The content of ``config.json``.

    ``features`` is Python that gives our features (B, D) from the ``outputs`` of the ``model``. ``has_classifier`` is
    false where the network of this ``model_type`` classifies by something else than ours.
    """

    model_type: ModelType
    values: dict[str, Any]
    features: str
    has_classifier: bool


def describe_transformers_folder(weights: Weights) -> TransformersConfig:
    """Describe the encoder in ``weights``, and its classifier if it can have one there, for transformers.

    Raises NoSuchEncoderError if transformers has no such network.
    """
    spec = weights.spec
    if spec is None:
        raise NoSuchEncoderError("the network is one of timm's")
    arrays = weights.arrays
    pool = weights.provenance.pool
    pools_before_norm = "fc_norm.weight" in arrays
    if not pools_before_norm and "norm.weight" not in arrays:
        raise NoSuchEncoderError("the encoder has no last norm")
    if pool == "map" or (pools_before_norm and pool != "avg"):
        raise NoSuchEncoderError("its networks pool otherwise")
    model_type = _choose_type(spec, pools_before_norm)
    if isinstance(spec, SwinSpec):
        values = _describe_swin(spec)
    else:
        values = _describe_vit(spec, model_type, pools_before_norm)
    labels = weights.provenance.labels
    has_classifier = bool(labels) and _classifies_alike(model_type, pool, pools_before_norm)
    classes = _CLASSIFIERS[model_type] if has_classifier else _CLASSES[model_type]
    head = {"architectures": [classes], "model_type": model_type}
    if has_classifier:
        values["id2label"] = {str(index): label for index, label in enumerate(labels)}
        values["label2id"] = {label: index for index, label in enumerate(labels)}
    features = _write_features(spec, model_type, pool, pools_before_norm)
    return TransformersConfig(model_type, {**head, **values}, features, has_classifier)


def _choose_type(spec: EncoderSpec, pools_before_norm: bool) -> ModelType:
    """Return the ``model_type`` of the network for ``spec``, whose last norm may stand after the pooling."""
    if isinstance(spec, SwinSpec):
        _check_windows(spec)
        return "swin"
    form = spec.form
    model_type: ModelType
    if form.rotary.kind is not None:
        model_type = "dinov3_vit"
    elif form.norm_before:
        model_type = "clip_vision_model"
    elif spec.relative or pools_before_norm:
        model_type = "beit"
    elif form.registers:
        model_type = "dinov2_with_registers"
    elif form.layer_scale or form.mlp.startswith("swiglu"):
        model_type = "dinov2"
    else:
        model_type = "vit"
    _check_form(form, model_type)
    if model_type == "dinov3_vit" and pools_before_norm:
        raise NoSuchEncoderError(f"its {model_type} has its last norm before the pooling")
    if model_type in _SQUARE and spec.grid[0] != spec.grid[1]:
        raise NoSuchEncoderError(f"its {model_type} takes square images, and these are {spec.image_size}")
    return model_type


def _check_form(form: VitForm, model_type: ModelType) -> None:
    """Raise NoSuchEncoderError if ``form`` has something that the network of transformers lacks."""
    allowed = _ALLOWED[model_type]
    for name, value in form:
        if name not in allowed and value != getattr(PLAIN, name):
            words = VitForm(**{name: value}).differences
            raise NoSuchEncoderError(f"it has no ViT with {words} (the nearest is {model_type})")
    if form.mlp.startswith("swiglu") and model_type not in _GATED:
        raise NoSuchEncoderError(f"its {model_type} has no gated MLP")
    if model_type == "dinov3_vit":
        rotary = form.rotary
        if rotary.kind != "dinov3" or not rotary.halves or form.added_positions:
            raise NoSuchEncoderError("it has rotary positions as in DINOv3 alone")


def _check_windows(spec: SwinSpec) -> None:
    """Raise NoSuchEncoderError if windows are not as large, or not moved as far, in transformers as in timm.

    timm fits windows into small stages and moves those of a wide stage sideways; transformers does neither.
    """
    is_square = spec.grid[0] == spec.grid[1]
    smallest = min(spec.grid)
    if smallest < spec.window or (smallest == spec.window and not is_square):
        raise NoSuchEncoderError(f"its swin has other windows where a stage is {spec.grid[0]} x {spec.grid[1]}")


def _describe_vit(spec: VitSpec, model_type: ModelType, pools_before_norm: bool) -> dict[str, Any]:
    form = spec.form
    height, width = spec.image_size
    values: dict[str, Any] = {
        "image_size": height if height == width else [height, width],
        "patch_size": spec.patch_size,
        "num_channels": spec.channels,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.heads,
        "layer_norm_eps": form.norm_epsilon,
        "hidden_act": _name_activation(form, model_type),
    }
    if model_type in ("dinov2", "dinov2_with_registers"):
        values |= _describe_dinov2(spec)
    else:
        values["intermediate_size"] = spec.hidden_features
    if model_type == "vit":
        # its pooling is a layer on the class token, which is written so that it changes nothing
        values |= {"qkv_bias": form.bias, "pooler_act": "linear"}
    elif model_type == "beit":
        values |= {
            "use_relative_position_bias": spec.relative,
            "use_absolute_position_embeddings": not spec.relative,
            "use_mean_pooling": pools_before_norm,
            # only tells whether there is any
            "layer_scale_init_value": 0.1 if spec.relative or form.layer_scale else 0.0,
        }
    elif model_type == "dinov2_with_registers":
        values["num_register_tokens"] = form.registers
    elif model_type == "dinov3_vit":
        values |= {
            "rope_theta": form.rotary.temperature,
            "num_register_tokens": form.registers,
            "query_bias": form.bias,
            "key_bias": False,
            "value_bias": form.bias,
            "use_gated_mlp": form.mlp.startswith("swiglu"),
        }
    return values


def _name_activation(form: VitForm, model_type: ModelType) -> str:
    if not form.mlp.startswith("swiglu"):
        return _ACTIVATIONS[form.mlp]
    # DINOv2's gates have SiLU whatever is said here, which is GELU in published files
    return "silu" if model_type == "dinov3_vit" else "gelu"


def _describe_dinov2(spec: VitSpec) -> dict[str, Any]:
    """Return what DINOv2's settings have instead of the number of hidden features, a whole ratio."""
    is_gated = spec.form.mlp.startswith("swiglu")
    features = spec.hidden_features
    if is_gated:
        # transformers takes two thirds, and rounds up to a multiple of 8
        features = 3 * features // 2
    if features % spec.width or (is_gated and spec.hidden_features % 8):
        raise NoSuchEncoderError(f"its dinov2 has no MLP with {spec.hidden_features} hidden features")
    values = {"mlp_ratio": features // spec.width, "use_swiglu_ffn": is_gated, "qkv_bias": spec.form.bias}
    if not spec.form.registers:
        values["use_mask_token"] = False
    return values


def _describe_swin(spec: SwinSpec) -> dict[str, Any]:
    height, width = spec.image_size
    return {
        "image_size": height if height == width else [height, width],
        "patch_size": spec.patch_size,
        "num_channels": spec.channels,
        "embed_dim": spec.width,
        "depths": list(spec.depths),
        "num_heads": list(spec.heads),
        "window_size": spec.window,
        "mlp_ratio": spec.mlp_ratio,
        "layer_norm_eps": _SWIN_EPSILON,
        "hidden_act": "gelu",
    }


def _write_features(spec: EncoderSpec, model_type: ModelType, pool: Pool, pools_before_norm: bool) -> str:
    """Return Python that gives the features from ``outputs`` and ``model``."""
    if isinstance(spec, SwinSpec) or (model_type == "beit" and pools_before_norm):
        return "outputs.pooler_output"
    tokens = "outputs.last_hidden_state"
    if model_type != "clip_vision_model":
        return f"{tokens}[:, 0]" if pool == "token" else f"{tokens}[:, {spec.form.prefix_tokens}:].mean(dim=1)"
    # CLIP's tower norms the class token alone
    if pool == "token":
        return "outputs.pooler_output"
    norm = 'getattr(model, "vision_model", model).post_layernorm'
    if pools_before_norm:
        return f"{norm}({tokens}[:, 1:].mean(dim=1))"
    return f"{norm}({tokens}[:, 1:]).mean(dim=1)"


def _classifies_alike(model_type: ModelType, pool: Pool, pools_before_norm: bool) -> bool:
    """Tell whether the classifier of transformers' network sees what ours does."""
    if model_type == "beit":
        return pool == ("avg" if pools_before_norm else "token")
    return model_type == "swin" or (model_type == "vit" and pool == "token")
