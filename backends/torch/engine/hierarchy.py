"""From similarity to hierarchy on a torch device, equal to :mod:`ehm.masking.hierarchy` on the host.

All pairs of clusters that are each other's nearest are merged at once, in rounds. Average linkage is reducible: no
merge brings anything nearer to a cluster than its nearest neighbour was. Therefore the trees are those of the greedy
loop (Eq. 5-13). Among equal similarities the lowest column is the nearest. Then the best pair of an image, and the
first of equally good ones, is always mutual: every round merges something.

A cluster stays in the column of its smallest leaf. A merge therefore empties one column, and every column but the first
is emptied exactly once. The facts about the merge are written into the emptied column by ``torch.where``, so that
nothing is scattered. Shapes depend on one number, the most clusters that any image has left. It is read from the device
every few rounds, to stop and to halve the matrix; this read waits for the device, and is the only one. All values are
float32; int64 occurs only as indices.

Shapes: B images, N patches, M = 2N - 1 nodes, W columns in use, K facts about each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ehm.masking.similarity import NotFiniteAttentionError

__all__ = ["DeviceHierarchy", "balance", "build_hierarchy"]

ROUNDS = 8
"""Rounds of merging between two reads of the number of clusters."""

MAX_PATCHES = 4096
"""Number of patches up to which N^2 is exact in float32."""

EMPTY = -1e30
"""Similarity to a column that is empty, and of a cluster to itself: below every real one, and its means are finite."""

# Rows of the facts about a cluster: its smallest leaf, its identity, size and level, and the lowest similarity that was
# merged within it.
LEAF, NODE, SIZE, LEVEL, LOW = range(5)
# Rows of the facts about a merge, in the column that it emptied: the identities of both clusters and the round. Size,
# level and lowest similarity are those of the new cluster.
LEFT, RIGHT, ROUND = 0, 1, 5


@dataclass(frozen=True, eq=False)
class DeviceHierarchy:
    """Binary trees over the patches of B images, in tensors of one device, numbered as :class:`ehm.masking.Hierarchy`.

    ``parent`` (B, M) int64, -1 at the root; ``level`` and ``size`` (B, M) int32; ``similarity`` (B, M) float32, NaN at
    leaves. Also ``sibling`` (B, M) int64, the other child of the same parent (the root is its own), and ``identity``
    (B, M) int64, by which :func:`ehm.backends.torch.engine.masks.hierarchical_mask` takes ``ranks``.
    """

    parent: Tensor
    level: Tensor
    size: Tensor
    similarity: Tensor
    sibling: Tensor
    identity: Tensor

    @property
    def height(self) -> Tensor:
        """Level of the root (B,) int32."""
        return self.level[:, -1]

    @property
    def patches(self) -> int:
        """Number of patches, N."""
        return (self.parent.shape[1] + 1) // 2


@torch.no_grad()
def balance(similarity: Tensor, iterations: int = 20) -> Tensor:
    """Balance as :func:`ehm.masking.balance`, except for rounding: (B, N, N), symmetric, >= 0 -> (B, N, N) float32."""
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, not {iterations}")
    _check_similarity(similarity)
    off_diagonal = similarity.float().masked_fill(_make_diagonal_mask(similarity), 0)
    scale = torch.ones_like(off_diagonal[:, 0])
    for _ in range(iterations):
        # no matrix product: TF32, HF32 and autocast would round it
        total = (off_diagonal * scale[:, None]).sum(dim=2) * scale
        scale = scale / total.masked_fill(total <= 0, 1).sqrt()
    return off_diagonal * (scale[:, :, None] * scale[:, None])


@torch.no_grad()
def build_hierarchy(similarity: Tensor) -> DeviceHierarchy:
    """Merge the two most similar parts of each image until one is left: (B, N, N) -> B binary trees.

    :func:`ehm.masking.build_hierarchy` does the same in float64: the trees are equal unless two similarities that
    compete, for a merge or for a place in the order of merging, are within the rounding of float32. Raises ValueError
    if the shape is not (B, N, N) with B >= 1 and 2 <= N <= 4096, or if a value is not finite.
    """
    _check_similarity(similarity)
    batch, n = similarity.shape[:2]
    similarity = similarity.float()
    finite = similarity.abs().amax(dim=(1, 2)) < -EMPTY / 2
    similarity = (similarity + similarity.transpose(1, 2)) / 2
    similarity = similarity.masked_fill(_make_diagonal_mask(similarity), EMPTY)
    leaf = torch.arange(n, dtype=torch.float32, device=similarity.device).expand(batch, n)
    one = torch.ones_like(leaf)
    zero = torch.zeros_like(leaf)
    facts = torch.stack([leaf, leaf, one, one, -EMPTY * one, zero], dim=1)  # (B, K, W)
    is_empty = zero > 0
    wider: list[tuple[Tensor, Tensor]] = []
    rounds = 0
    clusters_left = n
    while clusters_left > 1 and rounds < n - 1:
        for _ in range(min(ROUNDS, n - 1 - rounds)):
            rounds += 1
            similarity, facts, is_empty = _merge_pairs(similarity, facts, is_empty, n, rounds)
        # An image whose values are not finite counts as unmerged, so that it is found after the last round.
        clusters_left = int((~is_empty).sum(dim=1, dtype=torch.float32).masked_fill(~finite, n).max().item())
        width = facts.shape[2]
        while (width + 1) // 2 >= clusters_left > 1:
            width = (width + 1) // 2
        if width < facts.shape[2]:
            wider.append((facts, is_empty))
            similarity, facts, is_empty = _drop_empty_columns(similarity, facts, is_empty, width)
    if clusters_left > 1:
        raise NotFiniteAttentionError(f"similarity must be finite, and below {-EMPTY / 2:g} in magnitude")
    # Columns that were empty when the matrix was halved have their facts; the others were emptied later.
    for wider_facts, was_empty in reversed(wider):
        place = ((~was_empty).cumsum(dim=1, dtype=torch.float32) - 1).clamp(0, facts.shape[2] - 1).long()
        facts = torch.where(was_empty[:, None], wider_facts, _take_columns(facts, place))
    return _number_nodes(facts)


def _merge_pairs(
    similarity: Tensor, facts: Tensor, is_empty: Tensor, n: int, rounds: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge all columns that are each other's nearest, one round; the right column of a pair is emptied."""
    nearest, partner = similarity.max(dim=2)  # the first of equal ones, as torch promises
    index = torch.arange(partner.shape[1], device=partner.device)
    mutual = partner.gather(1, partner) == index  # the partner of an empty column is 0, which is never empty
    is_grown = mutual & (partner > index)
    is_emptied = mutual & (partner < index)

    other = _take_columns(facts, partner)
    size = facts[:, SIZE] + other[:, SIZE]
    level = torch.maximum(facts[:, LEVEL], other[:, LEVEL]) + 1
    # the minimum with both parts, because rounding must not lift it above that of a part
    lowest = torch.minimum(nearest, torch.minimum(facts[:, LOW], other[:, LOW]))
    shared_facts = [size, level, lowest, torch.full_like(size, rounds)]
    cluster = torch.stack([facts[:, LEAF], n - 1 + other[:, LEAF], *shared_facts], dim=1)
    merge = torch.stack([other[:, NODE], facts[:, NODE], *shared_facts], dim=1)
    facts = torch.where(is_emptied[:, None], merge, torch.where(is_grown[:, None], cluster, facts))

    # means over leaf pairs, rows and then columns (Eq. 7, by the formula of Lance and Williams, 1967)
    share = (other[:, SIZE] / size).masked_fill(~is_grown, 0)[:, :, None]
    rows = (partner + index.shape[0] * torch.arange(len(partner), device=partner.device)[:, None]).flatten()
    merged_rows = _move_toward(similarity, rows, share).transpose(1, 2).contiguous()
    merged = _move_toward(merged_rows, rows, share)
    similarity = torch.maximum(merged, merged.transpose(1, 2))  # symmetric to the last bit
    never_nearest = is_emptied[:, :, None] | is_emptied[:, None] | _make_diagonal_mask(similarity)
    return similarity.masked_fill_(never_nearest, EMPTY), facts, is_empty | is_emptied


def _move_toward(similarity: Tensor, rows: Tensor, share: Tensor) -> Tensor:
    """Move every row by ``share`` (B, W, 1) of the way to its row of ``rows`` (B * W)."""
    there = similarity.flatten(0, 1).index_select(0, rows)
    return torch.lerp(similarity, there.view_as(similarity), share)


def _drop_empty_columns(
    similarity: Tensor, facts: Tensor, is_empty: Tensor, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep ``width`` columns: those in use in their order, then empty ones."""
    n = is_empty.shape[1]
    # a key of its own for every column, because argsort promises no order of equal ones
    key = is_empty.float() * n + torch.arange(n, dtype=torch.float32, device=is_empty.device)
    kept = key.argsort(dim=1)[:, :width]
    rows = (kept + n * torch.arange(len(kept), device=kept.device)[:, None]).flatten()
    for _ in range(2):  # rows, then columns
        similarity = similarity.flatten(0, 1).index_select(0, rows).unflatten(0, kept.shape)
        similarity = similarity.transpose(1, 2).contiguous()
    # as numbers: an NPU gathers booleans on its slow scalar processor (AICPU), as GatherElements has no other for them
    return similarity, _take_columns(facts, kept), is_empty.float().gather(1, kept) > 0


def _number_nodes(facts: Tensor) -> DeviceHierarchy:
    """Number nodes in order of merging, from the facts (B, K, N) of all merges; column 0 is the root."""
    batch, _, n = facts.shape
    merges = facts[:, :, 1:]
    low = merges[:, LOW]
    # by round, and by column within a round; this orders merges of equal similarity
    when = merges[:, ROUND] * n + torch.arange(n - 1, device=facts.device, dtype=torch.float32)
    higher = low[:, :, None] > low[:, None]
    tied = (low[:, :, None] == low[:, None]) & (when[:, :, None] < when[:, None])
    leaf = torch.arange(n, dtype=torch.float32, device=facts.device).expand(batch, n)
    number = torch.cat([leaf, n + (higher | tied).sum(dim=1, dtype=torch.float32)], dim=1)  # by identity
    identity = number.argsort(dim=1)

    # every node is the left or the right child of one merge, or the root
    root = facts[:, NODE, :1]
    place = torch.cat([merges[:, LEFT], merges[:, RIGHT], root], dim=1).argsort(dim=1)
    parent = torch.cat([number[:, n:], number[:, n:], torch.full_like(root, -1)], dim=1)
    sibling = torch.cat([merges[:, RIGHT], merges[:, LEFT], root], dim=1)
    sibling = number.gather(1, sibling.long())
    one = torch.ones_like(leaf)
    rows = [
        parent.gather(1, place),
        sibling.gather(1, place),
        torch.cat([one, merges[:, LEVEL]], dim=1),
        torch.cat([one, merges[:, SIZE]], dim=1),
        torch.cat([math.nan * one, low], dim=1),
    ]
    parent, sibling, level, size, similarity = _take_columns(torch.stack(rows, dim=1), identity).unbind(dim=1)
    return DeviceHierarchy(parent.long(), level.int(), size.int(), similarity, sibling.long(), identity)


def _take_columns(facts: Tensor, index: Tensor) -> Tensor:
    """Take columns ``index`` (B, V) of ``facts`` (B, K, W): (B, K, V)."""
    return facts.gather(2, index[:, None].expand(-1, facts.shape[1], -1))


def _make_diagonal_mask(similarity: Tensor) -> Tensor:
    return torch.eye(similarity.shape[1], dtype=torch.bool, device=similarity.device)


def _check_similarity(similarity: Tensor) -> None:
    shape = tuple(similarity.shape)
    if len(shape) != 3 or shape[1] != shape[2] or shape[0] < 1 or not 2 <= shape[1] <= MAX_PATCHES:
        raise ValueError(f"similarity must have shape (B, N, N) with B >= 1 and 2 <= N <= {MAX_PATCHES}, not {shape}")
