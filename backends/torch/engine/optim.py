"""Parameter groups (who decays, layer-wise learning rates), LARS, and an optimiser's state as plain arrays.

The learning rate and the weight decay of a step come from the caller: a group keeps its own two factors, ``lr_scale``
and ``decays``, and :func:`set_rates` applies them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from timm.optim.lars import Lars
from torch import Tensor, nn
from torch.optim import Optimizer

from ehm.backends.common import is_decayed
from ehm.backends.torch.engine.distributed import gather_tensor, shard_like
from ehm.errors import CheckpointError
from ehm.storage.arrays import Arrays

__all__ = ["copy_optimizer_arrays", "create_lars", "load_optimizer_arrays", "make_param_groups", "set_rates"]

NamedParameters = Iterable[tuple[str, nn.Parameter]]


def make_param_groups(
    named_parameters: NamedParameters,
    no_decay: Collection[str] = (),
    layer_decay: float = 1.0,
    layers: Mapping[str, int] | None = None,
    below: float = 1.0,
) -> list[dict[str, Any]]:
    """Make groups for a torch optimiser, each with ``lr_scale`` (float) and ``decays`` (bool) beside its ``params``.

    ``layers`` gives each parameter's layer, 0 nearest to the pixels. With L the last one, layer i learns at
    ``layer_decay ** (L - i)`` of the rate and the head at all of it (BEiT, and MAE's ``lr_decay.py``). All layers but
    the last one have the factor ``below`` besides. Parameters that take no gradient are left out.
    """
    layers = layers or {}
    last = max(layers.values(), default=0)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        layer = layers.get(name, last)
        decaying = is_decayed(name, parameter.ndim, no_decay)
        scale = layer_decay ** (last - layer)
        if layer < last:
            scale *= below
        new_group = {"params": [], "lr_scale": scale, "decays": decaying}
        groups.setdefault((layer, decaying), new_group)["params"].append(parameter)
    return list(groups.values())


def set_rates(optimizer: Optimizer, lr: float, weight_decay: float) -> None:
    """Set this step's learning rate and weight decay on groups made by :func:`make_param_groups`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
        group["weight_decay"] = weight_decay if group["decays"] else 0.0


def create_lars(groups: Iterable[dict[str, Any]], lr: float) -> Lars:
    """Return timm's LARS (You et al., 2017) for ``groups``, set up as in MAE's linear probe.

    The rate of a matrix adapts to its length, vectors take plain momentum. Without weight decay every bit is that of
    MAE's published ``lars.py``. With it, timm divides the length of a matrix by ||g|| + wd ||w||, as the paper has it,
    where MAE's code divides by ||g + wd w||.
    """
    split = []
    for group in groups:
        for is_matrix in (True, False):
            parameters = [parameter for parameter in group["params"] if (parameter.ndim > 1) == is_matrix]
            if parameters:
                # timm itself adapts the groups that decay, but a recipe without weight decay adapts too
                split.append({**group, "params": parameters, "always_adapt": is_matrix})
    # an eps of 0, as MAE has none; timm handles lengths of 0 before it divides
    return Lars(split, lr=lr, momentum=0.9, trust_coeff=0.001, eps=0.0)


def copy_optimizer_arrays(optimizer: Optimizer, named_parameters: NamedParameters) -> Arrays:
    """Copy an optimiser's tensors, named ``{parameter name}/{slot}``, for example ``head.weight/exp_avg``."""
    arrays: Arrays = {}
    for name, parameter in named_parameters:
        for slot, value in optimizer.state.get(parameter, {}).items():
            # other slots are settings, which the configuration has
            if isinstance(value, Tensor):
                arrays[f"{name}/{slot}"] = np.array(gather_tensor(value.detach()).cpu().numpy(), order="C", copy=True)
    return arrays


def load_optimizer_arrays(
    optimizer: Optimizer, named_parameters: NamedParameters, arrays: Mapping[str, np.ndarray[Any, Any]]
) -> None:
    """Restore what :func:`copy_optimizer_arrays` gave; raises CheckpointError if a name or a shape does not fit."""
    parameters = dict(named_parameters)
    # torch keeps the step count on the host, except for kernels that read it on the device
    on_device = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    # moments of steps that the restored run did not take
    optimizer.state.clear()
    for key, array in arrays.items():
        name, _, slot = key.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None:
            raise CheckpointError(f"the optimiser's {key} belongs to no parameter of this model")
        value = torch.from_numpy(np.array(array, copy=True))
        if value.ndim and value.shape != parameter.shape:
            raise CheckpointError(f"the optimiser's {key} is {tuple(value.shape)}, not {tuple(parameter.shape)}")
        if value.ndim:
            value = shard_like(value, parameter)
        elif on_device:
            value = value.to(parameter.device)
        optimizer.state[parameter][slot] = value
