"""Evolved Hierarchical Masking: similarity -> hierarchy -> mask, and the masks beside it. No framework inside.

Shapes: B images, N patches in row-major order of the grid, M = 2N - 1 nodes.
"""

from ehm.masking.base import Masker
from ehm.masking.channels import count_hidden_channels, draw_channel_factors, draw_shown_channels
from ehm.masking.hierarchy import Hierarchy, build_hierarchy
from ehm.masking.masker import make_masker
from ehm.masking.masks import draw_ranks, hierarchical_mask, split_mask, spread_mask
from ehm.masking.parts import em_parts, part_count, part_mask
from ehm.masking.pieces import BatchMasks
from ehm.masking.saliency import attmask_high, attmask_hint, attmask_low, mst_mask
from ehm.masking.schedule import depth, masking_level
from ehm.masking.similarity import balance, cosine_similarity
from ehm.masking.static import block_mask, grid_mask, large_block_mask, multi_block_mask, random_mask

__all__ = [
    "BatchMasks",
    "Hierarchy",
    "Masker",
    "attmask_high",
    "attmask_hint",
    "attmask_low",
    "balance",
    "block_mask",
    "build_hierarchy",
    "cosine_similarity",
    "count_hidden_channels",
    "depth",
    "draw_channel_factors",
    "draw_ranks",
    "draw_shown_channels",
    "em_parts",
    "grid_mask",
    "hierarchical_mask",
    "large_block_mask",
    "make_masker",
    "masking_level",
    "mst_mask",
    "multi_block_mask",
    "part_count",
    "part_mask",
    "random_mask",
    "split_mask",
    "spread_mask",
]
