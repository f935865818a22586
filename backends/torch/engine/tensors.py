"""Move data between NumPy and a device: pixels in, parameters by name in and out."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ehm.backends.torch.engine.distributed import gather_tensor, shard_like
from ehm.backends.torch.engine.transfers import upload_array
from ehm.storage.arrays import Arrays, check_shapes

__all__ = ["Pixels", "load_arrays", "to_arrays"]


class Pixels:
    """Pixels (B, H, W, C) -> normalised float32 (B, C, H, W): they travel as they are, ``device`` does the arithmetic.

    ``mean`` and ``std`` are of values from 0 to 1, and ``white`` is the pixel that means 1: 255 for bytes.
    """

    def __init__(
        self, device: torch.device, mean: tuple[float, ...], std: tuple[float, ...], white: float = 255
    ) -> None:
        self._device = device
        # made once: a small copy in every step would make the host wait for the device
        self._offset = torch.tensor(mean).view(1, -1, 1, 1).mul(white).to(device)
        self._scale = torch.tensor(std).view(1, -1, 1, 1).mul(white).to(device)

    def __call__(self, images: NDArray[Any]) -> Tensor:
        """Upload and normalise ``images``."""
        return self.normalise(upload_array(images, self._device))

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise ``images`` that lie on the device already."""
        if images.dtype == torch.uint16:
            images = _to_signed(images)
        pixels = images.permute(0, 3, 1, 2).float()
        return ((pixels - self._offset) / self._scale).contiguous()


def _to_signed(images: Tensor) -> Tensor:
    """Return unsigned values of 16 bits as int32; not every device has a cast of their own type."""
    return images.view(torch.int16).int() & 0xFFFF


def to_arrays(module: nn.Module, names: Container[str] | None = None) -> Arrays:
    """Copy a module's parameters and buffers, by name: those that ``names`` has, or all."""
    arrays: Arrays = {}
    for name, value in module.state_dict().items():
        if names is not None and name not in names:
            continue
        arrays[name] = gather_tensor(value.detach()).cpu().numpy().copy()  # on a CPU, numpy() is a view
    return arrays


def load_arrays(module: nn.Module, arrays: Arrays) -> None:
    """Copy ``arrays`` into a module; raises CheckpointError naming what is missing, surplus or of another shape."""
    own = module.state_dict()
    check_shapes({name: tuple(value.shape) for name, value in own.items()}, arrays)
    tensors = {}
    for name, value in own.items():
        tensors[name] = shard_like(torch.from_numpy(np.array(arrays[name])), value)
    module.load_state_dict(tensors)
