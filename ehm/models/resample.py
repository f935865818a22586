"""Resampling as matrices, so that every backend resamples in the same way.

Shapes: N = h * w patches, D features, n heads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.config.encoders import EncoderSpec, SwinSpec

__all__ = ["TABLE", "bicubic", "resample_arrays", "resample_positions", "resample_table", "window_of"]

TABLE = "relative_position_bias_table"
"""How the names of biases for relative positions end."""
_POSITIONS = ("pos_embed", "decoder_pos_embed")


def bicubic(new: int, old: int) -> NDArray[np.float64]:
    """(new, old) weights of one axis: Keys's cubic kernel, a = -1/2, widened when shrinking and normalised at borders.

    Keys, "Cubic convolution interpolation for digital image processing" (1981), Eq. 15; what Pillow's BICUBIC and
    torch's antialiased ``interpolate`` do.
    """
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale
    x = np.abs((np.arange(old) + 0.5 - centres[:, None]) / max(scale, 1))
    weights = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((2.5 - 0.5 * x) * x - 4) * x + 2, 0))
    normalised: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return normalised


def resample_positions(positions: NDArray[Any], new: tuple[int, int], old: tuple[int, int]) -> NDArray[np.float32]:
    """Position embeddings (1, 1 + N, D) of an ``old`` (h, w) grid for a ``new`` one; the class token's stays.

    Bicubic with antialiasing, as timm's ``resample_abs_pos_embed`` does with ``torch.nn.functional.interpolate``.
    """
    token, patches = np.split(np.asarray(positions, np.float64), [1], axis=1)
    return np.concatenate([token, _resample(patches[0], new, old)[None]], axis=1).astype(np.float32)


def resample_table(table: NDArray[Any], new: tuple[int, int], old: tuple[int, int]) -> NDArray[np.float32]:
    """Biases of relative positions in ``old`` (h, w) tokens for ``new`` ones: ((2h - 1) * (2w - 1) + rest, n).

    Bicubic with antialiasing over the (2h - 1, 2w - 1) differences. The ``rest``, three rows of a ViT, is what the
    class token gives, gets and has to itself, and stays.
    """
    sizes = [(2 * height - 1, 2 * width - 1) for height, width in (new, old)]
    differences, rest = np.split(np.asarray(table, np.float64), [sizes[1][0] * sizes[1][1]])
    return np.concatenate([_resample(differences, *sizes), rest]).astype(np.float32)


def resample_arrays(arrays: Mapping[str, NDArray[Any]], new: EncoderSpec, old: EncoderSpec) -> dict[str, NDArray[Any]]:
    """An encoder's ``arrays`` under timm's names, with positions and tables of ``old`` as ``new`` has them."""
    return {name: _for(name, array, new, old) for name, array in arrays.items()}


def window_of(name: str, spec: EncoderSpec) -> tuple[int, int]:
    """Tokens down and across that attend to each other where the table ``name`` is used."""
    stage = re.match(r"layers\.(\d+)\.", name)
    return spec.windows[int(stage[1])] if stage and isinstance(spec, SwinSpec) else spec.grid


def _for(name: str, array: NDArray[Any], new: EncoderSpec, old: EncoderSpec) -> NDArray[Any]:
    if name in _POSITIONS and new.grid != old.grid:
        return resample_positions(array, new.grid, old.grid)
    if name.endswith(TABLE):
        windows = window_of(name, new), window_of(name, old)
        return array if windows[0] == windows[1] else resample_table(array, *windows)
    return array


def _resample(rows: NDArray[np.float64], new: tuple[int, int], old: tuple[int, int]) -> NDArray[np.float64]:
    """(h * w, D) of an ``old`` (h, w) grid -> that of a ``new`` one."""
    grid = rows.reshape(*old, -1)
    grid = np.einsum("yh,xw,hwd->yxd", bicubic(new[0], old[0]), bicubic(new[1], old[1]), grid, optimize=True)
    return grid.reshape(new[0] * new[1], -1)
