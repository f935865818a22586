"""From the name of a masking to masks: what the training loop calls once a step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ehm.masking.hierarchy import build_hierarchy
from ehm.masking.masks import hierarchical_mask
from ehm.masking.schedule import depth, masking_level
from ehm.masking.similarity import balance
from ehm.masking.static import block_mask, grid_mask, random_mask

if TYPE_CHECKING:
    from ehm.config import MaskConfig

__all__ = ["Masker", "make_masker"]

_STATIC = {"random": random_mask, "grid": grid_mask, "block": block_mask}
_FIXED = {"shallow": 0.2, "deep": 0.8}  # Tables III and IV


class Masker(Protocol):
    """Makes the masks of a step; ``needs_similarity`` says whether it looks at the images."""

    needs_similarity: bool

    def __call__(
        self, similarity: NDArray[np.float32] | None, batch: int, progress: float, rng: np.random.Generator
    ) -> tuple[NDArray[np.bool_], dict[str, float]]:
        """Masks (B, N) and figures to log, from similarities (B, N, N) and training progress in [0, 1].

        Hierarchies give ``mask_level`` and ``tree_height``, the number of ``parts`` at the level and the share of the
        patches that the ``largest_part`` holds, each the mean over the batch; static masks give nothing.
        """
        ...


def make_masker(masking: str, config: MaskConfig, grid: tuple[int, int]) -> Masker:
    """The masking called ``masking`` for a ``grid`` = (height, width) of patches.

    ``random``, ``grid`` and ``block`` do not look at the image. ``evolved`` deepens with training progress by the
    configuration's schedule and depth range; ``shallow`` and ``deep`` stay at a fifth and four fifths of the height.
    Raises ValueError for any other name.
    """
    if masking in _STATIC:
        return _Static(masking, config.ratio, grid)
    if masking == "evolved" or masking in _FIXED:
        return _Hierarchical(_FIXED.get(masking), config, grid[0] * grid[1])
    raise ValueError(f"masking must be one of {', '.join((*_STATIC, 'evolved', *_FIXED))}, not {masking!r}")


class _Static:
    needs_similarity = False

    def __init__(self, name: str, ratio: float, grid: tuple[int, int]) -> None:
        self._mask, self._ratio, self._grid = _STATIC[name], ratio, grid

    def __call__(
        self, similarity: NDArray[np.float32] | None, batch: int, progress: float, rng: np.random.Generator
    ) -> tuple[NDArray[np.bool_], dict[str, float]]:
        return self._mask(batch, self._grid, self._ratio, rng), {}


class _Hierarchical:
    needs_similarity = True

    def __init__(self, fixed: float | None, config: MaskConfig, patches: int) -> None:
        self._fixed, self._config, self._patches = fixed, config, patches

    def __call__(
        self, similarity: NDArray[np.float32] | None, batch: int, progress: float, rng: np.random.Generator
    ) -> tuple[NDArray[np.bool_], dict[str, float]]:
        if similarity is None:
            raise ValueError("similarity must be given: this masking looks at the images")
        if len(similarity) != batch or similarity.shape[-1] != self._patches:
            raise ValueError(
                f"similarity must have shape {(batch, self._patches, self._patches)}, not {similarity.shape}"
            )
        config = self._config
        if config.balance == "sinkhorn":
            similarity = balance(similarity)
        hierarchy = build_hierarchy(similarity)
        at = depth(progress, config.schedule if self._fixed is None else self._fixed, config.depth_range)
        mask = hierarchical_mask(hierarchy, at, config.ratio, rng)
        level = masking_level(at, hierarchy.height)
        parts = hierarchy.parts(level)
        largest = np.where(parts, hierarchy.size, 0).max(axis=1)
        return mask, {
            "mask_level": float(level.mean()),
            "tree_height": float(hierarchy.height.mean()),
            "parts": float(parts.sum(axis=1).mean()),
            "largest_part": float(largest.mean()) / hierarchy.patches,
        }
