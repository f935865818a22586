"""Tiny ViTs of the forms that published weights have: networks of timm's with random weights, and files of them."""

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.numpy import save_file

from ehm.backends.torch.models.timm_vit import read_timm_spec
from ehm.config.inputs import InputSpec
from ehm.models.encoder_file import make_encoder_metadata

FORMS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "deit_distilled": ("deit_tiny_distilled_patch16_224", 64, {}),
    "dinov2_registers": ("vit_small_patch14_reg4_dinov2", 56, {}),
    "dinov2_giant": ("vit_giant_patch14_dinov2", 56, {}),
    "dinov3": ("vit_small_patch16_dinov3", 64, {}),
    "dinov3_gated": ("vit_small_plus_patch16_dinov3", 64, {}),
    "clip": ("vit_base_patch16_clip_quickgelu_224", 64, {}),
    "siglip": ("vit_base_patch16_siglip_224", 64, {}),
    "aimv2": ("aimv2_large_patch14_224", 56, {}),
    "eva02": ("eva02_tiny_patch14_224", 56, {}),
    "eva02_clip": ("eva02_base_patch16_clip_224", 64, {}),
}
"""Name of timm's network, side of its images in pixels, and further arguments, by a short name of the form."""
SIZES = {"depth": 2, "embed_dim": 48, "num_heads": 2}


def random_network(form: str, classes: int = 0, **options: Any) -> Any:
    """Create timm's network of a form, of tiny sizes, whose parameters are all far from zero."""
    name, side, more = FORMS[form]
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=classes, img_size=side, **SIZES, **more, **options)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape))
            else:
                parameter.mul_(2).add_(0.05 * torch.randn(parameter.shape))
    return network.eval().requires_grad_(False)


def write_form(form: str, path: Path) -> Path:
    """Write the arrays of :func:`random_network` as a file that says what its encoder is; return ``path``."""
    found = read_timm_spec(random_network(form), form)
    assert found is not None
    spec, arrays = found
    save_file(
        dict(arrays), path, metadata=make_encoder_metadata(spec, InputSpec(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)))
    )
    return path
