"""Swin Transformers of timm's class, and their attention between the cells of the output grid.

A Swin attends within windows only. The attention of each block, shifted or not and of any stage, is added up over the
cells that its tokens lie in: how much of its attention the tokens of a cell give to those of another. Cells that no
window holds together get nothing from that block.

Shapes: B images, a map of h x w tokens of D features, nW windows of T tokens, heads n, N cells of the output grid.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import torch
from timm.models.swin_transformer import SwinTransformer, window_partition
from torch import Tensor, nn
from torch.nn.functional import pad

from ehm.backends.torch.models.adapters import compute_effective_weight
from ehm.backends.torch.models.attention import symmetrise
from ehm.config.encoders import SwinSpec
from ehm.models.timm_arguments import describe_swin

__all__ = [
    "average_cells",
    "build_swin",
    "compute_cell_attention",
    "compute_stage_similarity",
    "compute_window_attention",
    "run_first_blocks",
]


def build_swin(
    spec: SwinSpec,
    classes: int = 0,
    drop_path: float = 0.0,
    pool: Literal["avg"] = "avg",
    fc_norm: bool | None = None,
) -> SwinTransformer:
    """Build a Swin of ``spec``: normalised (B, 3, H, W) -> (B, classes), or mean features (B, D) for 0 classes.

    The features are the mean of the last tokens behind their norm, so that ``pool`` and ``fc_norm`` leave no choice;
    they are there because a ViT has them. The head starts near zero (std 2e-5), as those of our ViTs.
    """
    model = SwinTransformer(**list_swin_arguments(spec, drop_path), num_classes=classes)
    if isinstance(model.head.fc, nn.Linear):
        nn.init.trunc_normal_(model.head.fc.weight, std=2e-5)
    return model


def list_swin_arguments(spec: SwinSpec, drop_path: float) -> dict[str, Any]:
    """Return the arguments of timm's class for ``spec``."""
    return {**describe_swin(spec), "drop_path_rate": drop_path}


def compute_window_attention(block: Any, tokens: Tensor) -> Tensor:
    """Compute the softmax attention of one timm block on its input: (B, h, w, D) -> (B, nW, n, T, T)."""
    attn = block.attn
    windows = _partition_windows(block, block.norm1(tokens)).flatten(0, 1)  # (B * nW, T, D)
    weight = compute_effective_weight(attn.qkv)
    rows = 2 * weight.shape[0] // 3  # queries and keys alone
    bias = attn.qkv.bias
    if bias is not None:
        bias = bias[:rows]
    q, k = nn.functional.linear(windows, weight[:rows], bias).unflatten(2, (2, attn.num_heads, -1)).unbind(2)
    scores = (q * attn.scale).transpose(1, 2) @ k.permute(0, 2, 3, 1) + attn._get_rel_pos_bias()
    scores = scores.unflatten(0, (len(tokens), -1))
    # a shifted window joins tokens of two borders, which must not see each other
    if block.attn_mask is not None:
        scores = scores + block.attn_mask.unsqueeze(1)
    return scores.softmax(dim=-1)


def compute_cell_attention(block: Any, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Compute the attention between cells of ``grid``, mean over heads: (B, h, w, D) -> (B, N, N), float32.

    Entry (i, j) is the share of its attention that a token of cell i gives to cell j, averaged over the tokens of cell
    i. ``grid`` divides h and w.
    """
    probs = compute_window_attention(block, tokens).mean(dim=2, dtype=torch.float32)  # (B, nW, T, T)
    shift = tuple(block.shift_size)
    size = (tokens.shape[1], tokens.shape[2])
    owner = _find_owners(size, grid, tuple(block.window_size), shift, tokens.device)  # (nW, T, N)
    with torch.autocast(tokens.device.type, enabled=False):
        to_cells = (probs @ owner).flatten(1, 2)  # (B, nW * T, N)
        total = owner.flatten(0, 1).T @ to_cells
    tokens_per_cell = tokens.shape[1] * tokens.shape[2] / (grid[0] * grid[1])
    return total / tokens_per_cell


def run_first_blocks(stages: Any, tokens: Tensor, count: int) -> tuple[list[tuple[Any, Tensor]], Tensor]:
    """Run the first ``count`` blocks; return each with its input (B, h, w, D), and the output of the last."""
    blocks_and_inputs: list[tuple[Any, Tensor]] = []
    for stage in stages:
        if len(blocks_and_inputs) == count:
            break
        tokens = stage.downsample(tokens)
        for block in stage.blocks[: count - len(blocks_and_inputs)]:
            blocks_and_inputs.append((block, tokens))
            tokens = block(tokens)
    return blocks_and_inputs, tokens


def compute_stage_similarity(stages: Any, tokens: Tensor, count: int, grid: tuple[int, int]) -> Tensor:
    """Average the cell attention of the first ``count`` blocks and symmetrise: (B, h, w, D) -> (B, N, N)."""
    blocks_and_inputs, _ = run_first_blocks(stages, tokens, count)
    attentions = [compute_cell_attention(block, block_input, grid) for block, block_input in blocks_and_inputs]
    return symmetrise(torch.stack(attentions).mean(dim=0))


def average_cells(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average the tokens in each cell of ``grid``, which divides their map: (B, h, w, D) -> (B, N, D)."""
    cells = tokens.unflatten(2, (grid[1], -1)).unflatten(1, (grid[0], -1)).mean(dim=(2, 4))
    return cells.flatten(1, 2)


def _partition_windows(block: Any, tokens: Tensor) -> Tensor:
    """Divide tokens into windows as ``block`` does, shifted and padded: (B, h, w, D) -> (B, nW, T, D)."""
    return _cut_windows(tokens, block.window_size, block.shift_size)


def _cut_windows(tokens: Tensor, window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """Divide tokens into windows, shifted and padded: (B, h, w, D) -> (B, nW, T, D)."""
    height, width = tokens.shape[1:3]
    down, across = window
    if any(shift):
        tokens = tokens.roll((-shift[0], -shift[1]), dims=(1, 2))
    # as timm pads a map that windows do not divide
    tokens = pad(tokens, (0, 0, 0, -width % across, 0, -height % down))
    windows: Tensor = window_partition(tokens, window)
    return windows.flatten(1, 2).unflatten(0, (len(tokens), -1))


def _find_owners(
    size: tuple[int, int], grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], device: torch.device
) -> Tensor:
    """Return the marks of :func:`_mark_owners`, which are kept: every block needs them in each piece of a batch."""
    # a compiled pass makes them anew, fused with what takes them: torch does not trace a cache
    make = _mark_owners if torch.compiler.is_compiling() else _keep_owners
    return make(size, grid, window, shift, device)


def _mark_owners(
    size: tuple[int, int], grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], device: torch.device
) -> Tensor:
    """Mark the cell that each place of each window lies in, as zeros and a one: (nW, T, N), float32.

    ``size`` is that of the map of tokens.
    """
    height, width = size
    rows = torch.arange(height, device=device) // (height // grid[0])
    columns = torch.arange(width, device=device) // (width // grid[1])
    cells = torch.arange(grid[0] * grid[1], device=device)
    marks = (rows[:, None, None] * grid[1] + columns[:, None] == cells).float()[None]
    return _cut_windows(marks, window, shift)[0]


# whoever asks first may compute without gradients, and training takes the same tensor
_keep_owners = lru_cache(maxsize=32)(torch.inference_mode(False)(_mark_owners))
