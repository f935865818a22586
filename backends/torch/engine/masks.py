"""From a hierarchy on a torch device to masks there, equal to :mod:`ehm.masking.masks` on the host (Eq. 14-17).

Shapes: B images, N patches, M = 2N - 1 nodes.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ehm.backends.torch.engine.hierarchy import DeviceHierarchy
from ehm.backends.torch.engine.transfers import upload_array
from ehm.masking.schedule import masking_level
from ehm.masking.static import count_masked

__all__ = ["describe_parts", "hierarchical_mask", "split_mask", "spread_mask"]


@torch.no_grad()
def hierarchical_mask(tree: DeviceHierarchy, depth: float, ratio: float, ranks: Tensor) -> Tensor:
    """Hide parts at ``depth`` in [0, 1] until round(ratio * N) patches are hidden: (B, N) bool, True = masked.

    Masks are those of :func:`ehm.masking.hierarchical_mask` for the same trees and ``ranks`` (B, M) int32, which are on
    the device of the trees and come from :func:`ehm.masking.masks.draw_ranks`. Raises ValueError as that does.
    """
    n = tree.patches
    count = count_masked(ratio, n)
    if ranks.shape != tree.parent.shape:
        raise ValueError(f"ranks must have shape {tuple(tree.parent.shape)}, not {tuple(ranks.shape)}")
    _, part, inside = _find_parts(tree, depth)
    rank = ranks.gather(1, tree.identity)
    size = tree.size.float()

    order = rank.float().argsort(dim=1)
    taken = size.masked_fill(~part, 0).gather(1, order)
    start = (taken.cumsum(dim=1) - taken).gather(1, rank.long())  # leaves of the parts taken before

    # leaves of a part walked before a node: of first siblings, its own and those above it, by pointer jumping
    second = inside & (rank.gather(1, tree.sibling) < rank)
    before = size.gather(1, tree.sibling).masked_fill(~second, 0)
    top = torch.where(inside, tree.parent, torch.arange(ranks.shape[1], device=ranks.device))
    for _ in range(math.ceil(math.log2(n))):
        before = before + before.gather(1, top)
        top = top.gather(1, top)
    return before[:, :n] + start.gather(1, top[:, :n]) < count


@torch.no_grad()
def describe_parts(tree: DeviceHierarchy, depth: float) -> dict[str, Tensor]:
    """Compute the figures on trees and parts at ``depth`` in [0, 1] that :class:`ehm.masking.Masker` logs."""
    limit, part, _ = _find_parts(tree, depth)
    return {
        "mask_level": limit.float().mean(),
        "tree_height": tree.height.float().mean(),
        "parts": part.sum(dim=1, dtype=torch.float32).mean(),
        "largest_part": tree.size.float().masked_fill(~part, 0).amax(dim=1).mean() / tree.patches,
    }


def split_mask(mask: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the indices of the visible and the ``count`` masked patches, and each patch's place among both.

    ``mask`` is (B, N) bool, with ``count`` True in every row.
    """
    n = mask.shape[1]
    key = mask.float() * n + torch.arange(n, dtype=torch.float32, device=mask.device)
    order = key.argsort(dim=1)
    return order[:, : n - count], order[:, n - count :], order.float().argsort(dim=1)


def spread_mask(mask: Tensor, units: tuple[int, int], factor: int) -> Tensor:
    """Spread a mask of units over their tokens, ``factor`` x ``factor`` to a unit: (B, h * w) -> (B, N)."""
    down, across = units
    return mask.view(-1, down, 1, across, 1).expand(-1, -1, factor, -1, factor).flatten(1)


def _find_parts(tree: DeviceHierarchy, depth: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the masking level of each image (B, 1) int32, which nodes are parts at it, and which lie inside one."""
    # looked up by height, so that host and device round the same numbers
    levels = masking_level(depth, np.arange(1, tree.patches + 1, dtype=np.int32))
    table = upload_array(levels, tree.parent.device)
    limit = table.index_select(0, tree.height - 1)[:, None]
    inside = (tree.parent >= 0) & (tree.level.gather(1, tree.parent.clamp(min=0)) <= limit)
    return limit, (tree.level <= limit) & ~inside, inside
