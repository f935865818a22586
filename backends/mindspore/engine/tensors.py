"""Move data between NumPy and a device: pixels in, parameters by name in and out."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from numpy.typing import NDArray

from ehm.storage.arrays import Arrays, check_shapes

__all__ = ["Pixels", "load_arrays", "set_values", "to_arrays"]


class Pixels(nn.Cell):
    """Pixels (B, H, W, C) -> normalised float32 (B, C, H, W): they travel as they are, the device does the arithmetic.

    ``mean`` and ``std`` are of values from 0 to 1, and ``white`` is the pixel that means 1: 255 for bytes.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], white: float = 255) -> None:
        super().__init__()
        self.offset = Tensor(np.array(mean, np.float32) * white)
        self.scale = Tensor(np.array(std, np.float32) * white)

    def construct(self, images: Tensor) -> Tensor:
        """Normalise ``images``."""
        return ((images.astype(ms.float32) - self.offset) / self.scale).transpose((0, 3, 1, 2))


def to_arrays(cell: nn.Cell, names: Collection[str] | None = None) -> Arrays:
    """Copy a cell's parameters by name: those called ``names``, or all."""
    arrays = {}
    for name, parameter in cell.parameters_and_names():
        if names is None or name in names:
            arrays[name] = parameter.asnumpy().copy()
    return arrays


def load_arrays(cell: nn.Cell, arrays: Arrays) -> None:
    """Copy ``arrays`` into a cell; raises CheckpointError naming what is missing, surplus or of another shape."""
    own = dict(cell.parameters_and_names())
    check_shapes({name: tuple(parameter.shape) for name, parameter in own.items()}, arrays)
    for name, parameter in own.items():
        set_values(parameter, arrays[name])


def set_values(parameter: Parameter, array: NDArray[Any]) -> None:
    """Set the values of ``parameter``, in its own type."""
    # A graph that has run goes on with its own values after Parameter.set_data (2.10); those of an assignment it sees.
    ops.assign(parameter, Tensor(np.asarray(array, order="C"), parameter.dtype))
