"""Weights to start from, drawn with NumPy: the same on every device, and no generator's state is touched."""

from __future__ import annotations

import math

import numpy as np
from mindspore import Parameter, Tensor, nn
from numpy.typing import NDArray

from ehm.config.encoders import EncoderSpec, VitSpec

__all__ = ["init_masked", "init_truncated", "init_xavier"]

_CLASSIFIER_STD = {"head.weight": 2e-5, "head.1.weight": 0.01, "head.fc.weight": 2e-5, "head.fc.1.weight": 0.01}
"""Standard deviation of a classifier's weights: near zero in MAE's fine-tuning, larger behind a probe's batch norm."""


def init_xavier(cell: nn.Cell, rng: np.random.Generator) -> None:
    """Draw weights as MAE's published code: Xavier's uniform range for projections, std 0.02 for tokens, no biases.

    Positions that are trained, which MAE's are not, have that deviation too.
    """
    for name, parameter in cell.parameters_and_names():
        if name.endswith("_token") or (name == "pos_embed" and parameter.requires_grad):
            _set_values(parameter, rng.normal(0, 0.02, parameter.shape))
        elif name.endswith(".weight") and parameter.ndim > 1:
            outputs = parameter.shape[0]
            inputs = math.prod(parameter.shape[1:])
            limit = math.sqrt(6 / (inputs + outputs))
            _set_values(parameter, rng.uniform(-limit, limit, parameter.shape))


def init_masked(cell: nn.Cell, spec: EncoderSpec, rng: np.random.Generator) -> None:
    """Draw the weights of an encoder of ``spec`` that sees mask tokens, as timm does for its class."""
    if isinstance(spec, VitSpec) and spec.relative:
        _init_beit(cell, rng)
    else:
        init_truncated(cell, rng)


def _init_beit(cell: nn.Cell, rng: np.random.Generator) -> None:
    """Draw weights as timm's ``Beit`` under a convolutional or linear head: std 0.02 for projections and tokens.

    Convolutions have torch's own range; other biases and tables are zero. The layers that write into the residuals
    of block l, counted from 1, are divided by sqrt(2 l).
    """
    own = dict(cell.parameters_and_names())
    for name, parameter in own.items():
        if name.startswith(("patch_embed.proj.", "decoder.")):
            weight = own[f"{name.rpartition('.')[0]}.weight"]
            limit = 1 / math.sqrt(math.prod(weight.shape[1:]))
            _set_values(parameter, rng.uniform(-limit, limit, parameter.shape))
        elif name.endswith("_token") or (name.endswith(".weight") and parameter.ndim > 1):
            scale = 1.0
            if name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
                block = int(name.split(".")[1])
                scale = math.sqrt(2 * (1 + block))
            _set_values(parameter, rng.normal(0, 0.02, parameter.shape) / scale)


def init_truncated(cell: nn.Cell, rng: np.random.Generator) -> None:
    """Draw weights as timm's ViT and Swin: std 0.02 cut at two of them, 1e-6 for the class token and registers.

    Convolutions, those of patches and of a decoder, have torch's own range, a classifier has the deviation of
    :data:`_CLASSIFIER_STD`. Tables of biases are zero in a ViT, and drawn in a Swin.
    """
    own = dict(cell.parameters_and_names())
    for name, parameter in own.items():
        if name in ("cls_token", "reg_token"):
            _set_values(parameter, rng.normal(0, 1e-6, parameter.shape))
        elif name.startswith(("patch_embed.proj.", "decoder.")):
            weight = own[f"{name.rpartition('.')[0]}.weight"]
            limit = 1 / math.sqrt(math.prod(weight.shape[1:]))
            _set_values(parameter, rng.uniform(-limit, limit, parameter.shape))
        elif name == "attn_pool.latent":
            _set_values(parameter, _draw_cut_normal(rng, parameter.shape) / math.sqrt(parameter.shape[-1]))
        elif _is_drawn(name, parameter.ndim):
            std = _CLASSIFIER_STD.get(name, 0.02)
            _set_values(parameter, _draw_cut_normal(rng, parameter.shape) * std)


def _is_drawn(name: str, dimensions: int) -> bool:
    """Return whether a parameter of timm's networks has a standard deviation of its own at first."""
    if name in ("pos_embed", "mask_token"):
        return True
    if name.endswith("bias_table"):
        return name.startswith("layers.")  # a Swin's
    return name.endswith(".weight") and dimensions > 1


def _draw_cut_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Draw from a standard normal distribution without its tails beyond 2, whose values are drawn again."""
    values = rng.standard_normal(shape)
    while (beyond := np.abs(values) > 2).any():
        values[beyond] = rng.standard_normal(int(beyond.sum()))
    return values


def _set_values(parameter: Parameter, values: NDArray[np.float64]) -> None:
    parameter.set_data(Tensor(values.astype(np.float32)))
