"""Weights to start from, drawn with NumPy: the same on every device, and no generator's state is touched."""

from __future__ import annotations

import math

import numpy as np
from mindspore import Parameter, Tensor, nn
from numpy.typing import NDArray

__all__ = ["init_beit", "init_truncated", "init_xavier"]

_CLASSIFIER_STD = {"head.weight": 2e-5, "head.1.weight": 0.01}
"""Standard deviation of a classifier's weights: near zero in MAE's fine-tuning, larger behind a probe's batch norm."""


def init_xavier(cell: nn.Cell, rng: np.random.Generator) -> None:
    """Draw weights as MAE's published code: Xavier's uniform range for projections, std 0.02 for tokens, no biases."""
    for name, parameter in cell.parameters_and_names():
        if name.endswith("_token"):
            _set_values(parameter, rng.normal(0, 0.02, parameter.shape))
        elif name.endswith(".weight") and parameter.ndim > 1:
            outputs = parameter.shape[0]
            inputs = math.prod(parameter.shape[1:])
            limit = math.sqrt(6 / (inputs + outputs))
            _set_values(parameter, rng.uniform(-limit, limit, parameter.shape))


def init_beit(cell: nn.Cell, rng: np.random.Generator) -> None:
    """Draw weights as timm's ``Beit`` under a convolutional head: std 0.02 for projections and tokens.

    Both convolutions have torch's own range; other biases and tables are zero. The layers that write into the residuals
    of block l, counted from 1, are divided by sqrt(2 l).
    """
    own = dict(cell.parameters_and_names())
    for name, parameter in own.items():
        if name.startswith(("patch_embed.", "decoder.")):
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
    """Draw weights as timm's ViT: std 0.02 cut at two of them, 1e-6 for the class token.

    The patch embedding has torch's own range, a classifier the deviation of :data:`_CLASSIFIER_STD`.
    """
    for name, parameter in cell.parameters_and_names():
        if name == "cls_token":
            _set_values(parameter, rng.normal(0, 1e-6, parameter.shape))
        elif name.startswith("patch_embed."):
            limit = 1 / math.sqrt(math.prod(cell.patch_embed.proj.weight.shape[1:]))
            _set_values(parameter, rng.uniform(-limit, limit, parameter.shape))
        elif name == "pos_embed" or (name.endswith(".weight") and parameter.ndim > 1):
            std = _CLASSIFIER_STD.get(name, 0.02)
            _set_values(parameter, _draw_cut_normal(rng, parameter.shape) * std)


def _draw_cut_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Draw from a standard normal distribution without its tails beyond 2, whose values are drawn again."""
    values = rng.standard_normal(shape)
    while (beyond := np.abs(values) > 2).any():
        values[beyond] = rng.standard_normal(int(beyond.sum()))
    return values


def _set_values(parameter: Parameter, values: NDArray[np.float64]) -> None:
    parameter.set_data(Tensor(values.astype(np.float32)))
