"""Networks on a device, with the kernels that suit it there."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from timm.models.beit import Attention
from timm.models.swin_transformer import WindowAttention
from timm.models.vision_transformer_relpos import RelPosAttention
from torch import nn

from ehm.backends.torch.engine.devices import FACTS

__all__ = ["copy_model", "place_model"]

_ATTENTION_WITH_BIAS = (Attention, WindowAttention, RelPosAttention)
"""Layers of timm's that add a bias for relative positions to the scores."""

M = TypeVar("M", bound=nn.Module)


def place_model(model: M, device: torch.device, convolves: bool = False) -> M:
    """Move ``model`` to ``device``, in the form that suits the kernels there; return it.

    ``convolves`` says whether it spends much of its time in convolutions.
    """
    if not FACTS[device.type].fuses_attention_with_bias:
        for module in model.modules():
            if isinstance(module, _ATTENTION_WITH_BIAS):
                # timm's own matrix products and softmax
                module.fused_attn = False  # type: ignore[misc]  # timm declares it final for scripting alone
    if convolves and FACTS[device.type].channels_last:
        # the maps follow the weights of the convolutions that they come from
        model.to(memory_format=torch.channels_last)
    return model.to(device)


def copy_model(model: M) -> M:
    """Return a copy of ``model`` with tensors of its own on the same device.

    Tensors are cloned here, because deepcopy clones their storages, which not every device outside of torch does.
    """
    copies: dict[int, Any] = {}
    for parameter in model.parameters():
        copies[id(parameter)] = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        copies[id(buffer)] = buffer.clone()
    return copy.deepcopy(model, copies)
