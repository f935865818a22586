"""Encoders as OpenCLIP's and timm's settings describe them.

Names and defaults are those of OpenCLIP's ``src/open_clip/model.py`` (``CLIPVisionCfg``) and of timm's
``timm/models/_hub.py``. A setting that asks for an encoder that ehm does not have is a CheckpointError that names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ehm.models.published.facts import Activation, PublishedFacts
from ehm.models.published.settings import Settings

__all__ = ["HubModel", "describe_openclip", "describe_timm"]

_TIMM_ARGUMENTS = {
    *("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "num_classes", "in_chans"),
    *("global_pool", "init_values", "drop_rate", "drop_path_rate", "pos_drop_rate", "proj_drop_rate"),
    *("attn_drop_rate", "patch_drop_rate", "weight_init", "fix_init", "class_token", "reg_tokens", "fc_norm"),
    *("no_embed_class", "pre_norm", "dynamic_img_size", "dynamic_img_pad", "strict_img_size", "depths", "window_size"),
    *("qkv_bias", "use_fc_norm", "num_reg_tokens", "always_partition", "strict_img_size"),
}
"""Arguments in timm's ``model_args`` that change no function, or that names and shapes of the arrays tell."""
_TIMM_TANH = re.compile(r"so400m_patch16_siglip|giantopt_patch16_siglip|patch32_siglip|large_patch16_siglip(_gap)?_512")
"""timm's SigLIPs that have GELU by tanh; the others have the exact one (``timm/models/vision_transformer.py``)."""


@dataclass(frozen=True)
class HubModel:
    """An encoder as settings describe it; None for what they leave open."""

    facts: PublishedFacts
    image_size: tuple[int, int] | None = None
    heads: int | None = None
    width: int | None = None
    depth: int | None = None
    patch_size: int | None = None


def describe_openclip(settings: Settings, facts: PublishedFacts) -> HubModel:
    """Return the image tower in OpenCLIP's ``open_clip_config.json``."""
    model = settings.section("model_cfg")
    tower = model.section("vision_cfg")
    known = replace(facts, assumed="")
    size = tower.pair("image_size") if "image_size" in tower else None
    if "timm_model_name" in tower:
        if _TIMM_TANH.search(tower.text("timm_model_name")):
            return HubModel(replace(known, activation="gelu_tanh"), size)
        return HubModel(replace(known, activation="gelu"), size)
    width = tower.count("width", 768)
    activation: Activation = "quick_gelu" if model.flag("quick_gelu", False) else "gelu"
    return HubModel(
        replace(known, activation=activation),
        size,
        heads=width // tower.count("head_width", 64),
        width=width,
        depth=tower.count("layers", 12),
        patch_size=tower.pair("patch_size")[0] if "patch_size" in tower else None,
    )


def describe_timm(settings: Settings, facts: PublishedFacts) -> HubModel:
    """Return the encoder in timm's ``config.json``, as which transformers' ``timm_wrapper`` counts too."""
    name = settings.text("architecture")
    arguments = settings.section("model_args")
    for key in arguments.names():
        if key not in _TIMM_ARGUMENTS:
            raise arguments.refuse_setting(key, "ehm does not know what this changes in timm's network")
    activation: Activation = "gelu"
    if "quickgelu" in name:
        activation = "quick_gelu"
    elif _TIMM_TANH.search(name):
        activation = "gelu_tanh"
    known = replace(facts, assumed="", activation=activation)
    size = None
    if "img_size" in arguments:
        size = arguments.pair("img_size")
    elif "input_size" in settings.section("pretrained_cfg"):
        size = settings.section("pretrained_cfg").build(_read_input_size)
    heads = None
    # a Swin has a list of heads, which the tables of its stages tell
    if "num_heads" in arguments and not re.search("swin", name):
        heads = arguments.count("num_heads")
    return HubModel(known, size, heads)


def _read_input_size(values: Mapping[str, Any]) -> tuple[int, int]:
    """Return height and width of timm's ``input_size``, which is (channels, height, width)."""
    _, height, width = values["input_size"]
    return int(height), int(width)
