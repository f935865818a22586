"""Vision Transformers of timm's own classes, so that every parameter has timm's name."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from timm.models import group_parameters
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ehm.config.encoders import LAYER_SCALE, VitSpec

__all__ = ["build_vit", "layers_of", "vit_sizes"]


def build_vit(
    spec: VitSpec,
    classes: int = 0,
    drop_path: float = 0.0,
    global_pool: Literal["avg", "token"] = "avg",
    fc_norm: bool | None = None,
) -> VisionTransformer | Beit:
    """Build a ViT of ``spec``: normalised (B, 3, H, W) -> (B, classes), or pooled features (B, D) for 0 classes.

    ``global_pool`` is ``avg`` (mean of the patch tokens) or ``token`` (the class token). As in MAE's fine-tuning the
    last norm follows an average, unless ``fc_norm`` is False, and the head starts near zero (std 2e-5). The relative
    form has a table of biases in every block, as BEiT and SimMIM fine-tune.
    """
    sizes = {**vit_sizes(spec, drop_path), "num_classes": classes, "global_pool": global_pool}
    model: VisionTransformer | Beit
    if spec.relative:
        model = Beit(**sizes, use_fc_norm=fc_norm, use_rel_pos_bias=True)
    else:
        model = VisionTransformer(**sizes, fc_norm=fc_norm)
    if isinstance(model.head, nn.Linear):
        nn.init.trunc_normal_(model.head.weight, std=2e-5)
    return model


def vit_sizes(spec: VitSpec, drop_path: float) -> dict[str, Any]:
    """Return the arguments of timm's class for ``spec``: VisionTransformer, or Beit without added positions."""
    arguments = {
        "img_size": spec.image_size,
        "patch_size": spec.patch_size,
        "embed_dim": spec.width,
        "depth": spec.depth,
        "num_heads": spec.heads,
        "mlp_ratio": spec.mlp_ratio,
        "drop_path_rate": drop_path,
        # the epsilon of ViT; torch's own is 1e-5
        "norm_layer": partial(nn.LayerNorm, eps=1e-6),
    }
    if spec.relative:
        arguments |= {"use_abs_pos_emb": False, "init_values": LAYER_SCALE}
    return arguments


def layers_of(model: Any) -> dict[str, int]:
    """Return the layer of every parameter of a timm model: the embedding (0), the blocks, the head with its norm.

    The head of a model in pretraining is all that predicts what is hidden, and its mask token.
    """
    layers: dict[str, int] = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    return layers
