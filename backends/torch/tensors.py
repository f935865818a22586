"""Between NumPy and a device: pixels in, parameters by name in and out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ehm.backends.base import Arrays
from ehm.errors import CheckpointError

__all__ = ["chunks", "load_arrays", "to_arrays", "to_pixels"]


def chunks(batch: int, parts: int) -> Iterator[slice]:
    """At most ``parts`` slices of a batch for gradient accumulation; a short batch gives fewer, none of them empty."""
    size = -(-batch // parts)
    for start in range(0, batch, size):
        yield slice(start, min(start + size, batch))


def to_pixels(
    images: NDArray[np.uint8],
    device: torch.device,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Tensor:
    """Bytes (B, H, W, 3) -> normalised float32 (B, 3, H, W); bytes travel, ``device`` does the arithmetic."""
    pixels = torch.from_numpy(images).to(device, non_blocking=True).permute(0, 3, 1, 2).float()
    offset = torch.tensor(mean, device=device).view(1, 3, 1, 1) * 255
    scale = torch.tensor(std, device=device).view(1, 3, 1, 1) * 255
    return ((pixels - offset) / scale).contiguous()


def to_arrays(module: nn.Module) -> Arrays:
    """Copies of a module's parameters and buffers by name."""
    return {name: value.detach().cpu().numpy().copy() for name, value in module.state_dict().items()}


def load_arrays(module: nn.Module, arrays: Arrays) -> None:
    """Copy ``arrays`` into a module; raises CheckpointError naming what is missing, surplus or of another shape."""
    own = module.state_dict()
    problems = [f"{name} is missing" for name in own.keys() - arrays.keys()]
    problems += [f"{name} is not part of the model" for name in arrays.keys() - own.keys()]
    problems += [
        f"{name} is {arrays[name].shape}, not {tuple(value.shape)}"
        for name, value in own.items()
        if name in arrays and arrays[name].shape != tuple(value.shape)
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError("the weights do not fit this model: " + "; ".join(sorted(problems)[:3]) + more)
    module.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})
