"""The encoders that have a name, as numbers: no framework, so that every backend builds the same ones."""

from ehm.config.encoders.families import FAMILIES, PRESETS, EncoderSpec, encoder_spec, find_family
from ehm.config.encoders.form import DINOV3_ROTARY, EVA_ROTARY, PLAIN, Rotary, VitForm
from ehm.config.encoders.swin import SwinSpec
from ehm.config.encoders.vit import LAYER_SCALE, VIT_PRESETS, VitSpec, compute_relative_index, compute_sincos_positions

__all__ = [
    "DINOV3_ROTARY",
    "EVA_ROTARY",
    "FAMILIES",
    "LAYER_SCALE",
    "PLAIN",
    "PRESETS",
    "VIT_PRESETS",
    "EncoderSpec",
    "Rotary",
    "SwinSpec",
    "VitForm",
    "VitSpec",
    "compute_relative_index",
    "compute_sincos_positions",
    "encoder_spec",
    "find_family",
]
