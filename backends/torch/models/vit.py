"""Vision Transformers of timm's own classes, so that every parameter has timm's name.

A ViT with rotary positions is timm's ``Eva``, one with BEiT's relative positions its ``Beit``, and any other its
``VisionTransformer``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.layers.mlp import SwiGLU, SwiGLUPacked
from timm.layers.norm import RmsNorm
from timm.models import group_parameters
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ehm.config.encoders import VitForm, VitSpec
from ehm.models.timm_arguments import describe_vit, describe_vit_sizes, name_vit_class
from ehm.models.weights import Pool

__all__ = ["VIT_CLASSES", "build_vit", "find_layers", "find_vit_class", "list_vit_arguments"]

VIT_CLASSES = (VisionTransformer, Beit, Eva)
"""The classes of timm's that :func:`build_vit` builds."""

_CLASSES: dict[str, type[VisionTransformer] | type[Beit] | type[Eva]] = {
    "VisionTransformer": VisionTransformer,
    "Beit": Beit,
    "Eva": Eva,
}
_MLPS = {"swiglu": SwiGLU, "swiglu_packed": SwiGLUPacked}
"""timm's layers of MLPs with a gate."""


class _RmsNorm(RmsNorm):
    """Division by the root mean square of the features (Zhang and Sennrich, 2019), in plain operators.

    torch's own operator has no kernel in torch-npu, and warns if weights and features differ in type, as they do under
    autocast. As with layer normalisation there, it is computed in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D), float32."""
        x = x.float()
        normalised: Tensor = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps) * self.weight
        return normalised


def build_vit(
    spec: VitSpec,
    classes: int = 0,
    drop_path: float = 0.0,
    global_pool: Pool = "avg",
    fc_norm: bool | None = None,
) -> VisionTransformer | Beit | Eva:
    """Build a ViT of ``spec``: normalised (B, 3, H, W) -> (B, classes), or pooled features (B, D) for 0 classes.

    ``global_pool`` is ``avg`` (mean of the patch tokens), ``token`` (the class token) or ``map`` (a learned query). As
    in MAE's fine-tuning the last norm follows an average, unless ``fc_norm`` is False, and the head starts near zero
    (std 2e-5). The relative form has a table of biases in every block, as BEiT and SimMIM fine-tune.
    """
    kind: Any = find_vit_class(spec)
    options = describe_vit(spec, fc_norm)
    if kind is VisionTransformer:
        options |= _choose_layers(spec.form)
    model: VisionTransformer | Beit | Eva = kind(
        **list_vit_arguments(spec, drop_path), **options, num_classes=classes, global_pool=global_pool
    )
    if isinstance(model.head, nn.Linear):
        nn.init.trunc_normal_(model.head.weight, std=2e-5)
    return model


def find_vit_class(spec: VitSpec) -> type[VisionTransformer] | type[Beit] | type[Eva]:
    """Return timm's class of a ViT of ``spec``."""
    return _CLASSES[name_vit_class(spec)]


def list_vit_arguments(spec: VitSpec, drop_path: float) -> dict[str, Any]:
    """Return the arguments of timm's class for ``spec``: VisionTransformer, Eva, or Beit without added positions."""
    return {**describe_vit_sizes(spec), "drop_path_rate": drop_path, "norm_layer": _choose_norm(spec.form)}


def find_layers(model: Any) -> dict[str, int]:
    """Return the layer of every parameter of a timm model: the embedding (0), the blocks, the head with its norm.

    The head of a model in pretraining is all that predicts what is hidden, and its mask token.
    """
    layers: dict[str, int] = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    return layers


def _choose_norm(form: VitForm) -> Any:
    if form.norm == "rms":
        return partial(_RmsNorm, eps=form.norm_epsilon)
    return partial(nn.LayerNorm, eps=form.norm_epsilon)


def _choose_layers(form: VitForm) -> dict[str, Any]:
    """Return the layers of timm's VisionTransformer that ``form`` has instead of the plain ones."""
    layers: dict[str, Any] = {}
    if form.mlp in _MLPS:
        layers["mlp_layer"] = _MLPS[form.mlp]
    if form.norm_patches:
        layers["embed_norm_layer"] = _choose_norm(form)
    return layers
