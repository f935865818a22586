"""Weights to start from, drawn with NumPy: the same on every device, and no generator's state is touched."""

from __future__ import annotations

import math

import numpy as np
from mindspore import Parameter, Tensor, nn
from numpy.typing import NDArray

__all__ = ["beit", "truncated", "xavier"]


def xavier(cell: nn.Cell, rng: np.random.Generator) -> None:
    """As MAE's published code: Xavier's uniform range for projections, std 0.02 for tokens, zero for biases."""
    for name, parameter in cell.parameters_and_names():
        if name.endswith("_token"):
            _set(parameter, rng.normal(0, 0.02, parameter.shape))
        elif name.endswith(".weight") and parameter.ndim > 1:
            outputs, inputs = parameter.shape[0], math.prod(parameter.shape[1:])
            limit = math.sqrt(6 / (inputs + outputs))
            _set(parameter, rng.uniform(-limit, limit, parameter.shape))


def beit(cell: nn.Cell, rng: np.random.Generator) -> None:
    """As timm's ``Beit`` under a convolutional head: std 0.02 for projections and tokens, torch's own range for both
    convolutions, zero for other biases and for tables.

    What writes into the residuals of block l, counted from 1, is divided by sqrt(2 l).
    """
    own = dict(cell.parameters_and_names())
    for name, parameter in own.items():
        if name.startswith(("patch_embed.", "decoder.")):
            limit = 1 / math.sqrt(math.prod(own[f"{name.rpartition('.')[0]}.weight"].shape[1:]))
            _set(parameter, rng.uniform(-limit, limit, parameter.shape))
        elif name.endswith("_token") or (name.endswith(".weight") and parameter.ndim > 1):
            writes = name.endswith(("attn.proj.weight", "mlp.fc2.weight"))
            scale = math.sqrt(2 * (1 + int(name.split(".")[1]))) if writes else 1
            _set(parameter, rng.normal(0, 0.02, parameter.shape) / scale)


def truncated(cell: nn.Cell, rng: np.random.Generator) -> None:
    """As timm's ViT: std 0.02 cut at two of them, 1e-6 for the class token, torch's own range for the patch embedding.

    The head gets std 2e-5 as in MAE's fine-tuning, 0.01 in a probe.
    """
    for name, parameter in cell.parameters_and_names():
        if name == "cls_token":
            _set(parameter, rng.normal(0, 1e-6, parameter.shape))
        elif name.startswith("patch_embed."):
            limit = 1 / math.sqrt(math.prod(cell.patch_embed.proj.weight.shape[1:]))
            _set(parameter, rng.uniform(-limit, limit, parameter.shape))
        elif name == "pos_embed" or (name.endswith(".weight") and parameter.ndim > 1):
            std = {"head.weight": 2e-5, "head.1.weight": 0.01}.get(name, 0.02)
            _set(parameter, _cut_normal(rng, parameter.shape) * std)


def _cut_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """A standard normal distribution; what lies beyond 2 is drawn again."""
    values = rng.standard_normal(shape)
    while (beyond := np.abs(values) > 2).any():
        values[beyond] = rng.standard_normal(int(beyond.sum()))
    return values


def _set(parameter: Parameter, values: NDArray[np.float64]) -> None:
    parameter.set_data(Tensor(values.astype(np.float32)))
