"""Resampling as matrices, so that every backend resamples in the same way.

Shapes: N = h * w patches, D features, n heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.config.encoders import EncoderSpec, VitSpec
from ehm.models.tables import TABLE

__all__ = [
    "compute_bicubic_weights",
    "compute_bilinear_weights",
    "resample_arrays",
    "resample_images",
    "resample_positions",
    "resample_table",
]

_POSITIONS = ("pos_embed", "decoder_pos_embed")


def compute_bicubic_weights(new: int, old: int) -> NDArray[np.float64]:
    """Compute the weights (new, old) that resample one axis: Keys's cubic kernel with a = -1/2.

    The kernel is widened when shrinking and normalised at borders. Keys, "Cubic convolution interpolation for digital
    image processing" (1981), Eq. 15; Pillow's BICUBIC and torch's antialiased ``interpolate`` do the same.
    """
    x = _measure_distances(new, old)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((2.5 - 0.5 * x) * x - 4) * x + 2
    return _normalise_rows(np.where(x < 1, near, np.where(x < 2, far, 0)))


def compute_bilinear_weights(new: int, old: int) -> NDArray[np.float64]:
    """Compute the weights (new, old) that resample one axis by a triangle, widened when shrinking.

    It is Pillow's BILINEAR and torch's antialiased ``interpolate``.
    """
    return _normalise_rows(np.maximum(1 - _measure_distances(new, old), 0))


def resample_images(images: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resample images (B, 3, h, w) in [0, 1] to ``size`` = (H, W): (B, H, W, 3)."""
    down = compute_bicubic_weights(size[0], images.shape[2])
    across = compute_bicubic_weights(size[1], images.shape[3])
    resampled = (down @ images @ across.T).clip(0, 1)  # bicubic resampling overshoots
    return resampled.transpose(0, 2, 3, 1).astype(np.float32)


def resample_positions(
    positions: NDArray[Any], new: tuple[int, int], old: tuple[int, int], prefix: int = 1
) -> NDArray[np.float32]:
    """Resample position embeddings (1, prefix + N, D) from an ``old`` (h, w) grid to a ``new`` one.

    Bicubic with antialiasing, as timm's ``resample_abs_pos_embed`` does with ``torch.nn.functional.interpolate``. The
    positions of the ``prefix`` tokens before the patches stay.
    """
    # in float64, so that the result does not depend on the order in which a library sums
    tokens, patches = np.split(np.asarray(positions, np.float64), [prefix], axis=1)
    resampled = _resample_grid(patches[0], new, old)
    return np.concatenate([tokens, resampled[None]], axis=1).astype(np.float32)


def resample_table(table: NDArray[Any], new: tuple[int, int], old: tuple[int, int]) -> NDArray[np.float32]:
    """Resample biases of relative positions in ``old`` (h, w) tokens for ``new`` ones: ((2h - 1) * (2w - 1) + rest, n).

    Bicubic with antialiasing over the (2h - 1, 2w - 1) differences. The ``rest``, three rows of a ViT for the class
    token, stays.
    """
    new_differences = (2 * new[0] - 1, 2 * new[1] - 1)
    old_differences = (2 * old[0] - 1, 2 * old[1] - 1)
    differences, rest = np.split(np.asarray(table, np.float64), [old_differences[0] * old_differences[1]])
    return np.concatenate([_resample_grid(differences, new_differences, old_differences), rest]).astype(np.float32)


def resample_arrays(arrays: Mapping[str, NDArray[Any]], new: EncoderSpec, old: EncoderSpec) -> dict[str, NDArray[Any]]:
    """Return an encoder's ``arrays``, timm's names, with the positions and tables of ``old`` resampled to ``new``."""
    resampled = dict(arrays)
    for name, array in arrays.items():
        if name in _POSITIONS and new.grid != old.grid:
            # the decoder of MAE has a position of its own for the class token
            prefix = 1
            if isinstance(new, VitSpec) and name == "pos_embed":
                prefix = new.form.position_tokens
            resampled[name] = resample_positions(array, new.grid, old.grid, prefix)
        elif name.endswith(TABLE) and new.table_grid(name) != old.table_grid(name):
            resampled[name] = resample_table(array, new.table_grid(name), old.table_grid(name))
    return resampled


def _measure_distances(new: int, old: int) -> NDArray[np.float64]:
    """Return the distances (new, old) between the centres of pixels, as arguments of a kernel."""
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale  # pixels are areas: their centres lie at halves
    # a kernel that is widened when shrinking smooths what the new grid cannot hold
    distances: NDArray[np.float64] = np.abs((np.arange(old) + 0.5 - centres[:, None]) / max(scale, 1))
    return distances


def _normalise_rows(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Let each row sum to one: at a border a part of the kernel lies outside, and what is left would not."""
    normalised: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return normalised


def _resample_grid(rows: NDArray[np.float64], new: tuple[int, int], old: tuple[int, int]) -> NDArray[np.float64]:
    """Resample rows (h * w, D) of an ``old`` (h, w) grid to a ``new`` one."""
    down = compute_bicubic_weights(new[0], old[0])
    across = compute_bicubic_weights(new[1], old[1])
    grid = np.einsum("yh,xw,hwd->yxd", down, across, rows.reshape(*old, -1), optimize=True)
    return grid.reshape(new[0] * new[1], -1)
