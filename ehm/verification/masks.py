"""Trees and masks: those of the host beside the paper's greedy merging, and those of the device beside the host's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import Backend
from ehm.masking import build_hierarchy, make_masker
from ehm.masking.base import PreparedOnDevice
from ehm.masking.pieces import copy_to_host
from ehm.reference.hierarchy import Tree, balance_similarity, build_tree, follows_tree
from ehm.verification.cases import GRIDS, Case, create_learner, draw_images, load_weights
from ehm.verification.check import Measurement, SkipError

__all__ = ["check_host_trees", "compare_device_masks", "compare_host_masks"]

_PROGRESS = (0.0, 0.3, 0.7, 1.0)
"""Moments of training at which masks are drawn."""
_IMAGES = 6
_NEAR_TIES = 0.1
"""Share of the masks that may differ: of two merges that are a rounding apart, either may come first."""


def check_host_trees() -> Iterator[Measurement]:
    """Compare the host's trees with those that the paper's greedy merging gives, without a device."""
    for side in GRIDS.values():
        patches = side * side
        similarity = _draw_similarity(patches)
        hierarchy = build_hierarchy(similarity)
        different = 0
        for image, matrix in enumerate(similarity):
            expected = build_tree(matrix.astype(np.float64))
            parent = hierarchy.parent[image]
            different += _list_parts(parent, patches) != {frozenset(leaves) for leaves in expected.leaves}
        yield Measurement(f"{patches} patches", different / len(similarity), 0.0, "share of trees that differ")


def compare_host_masks(backend: Backend, case: Case) -> Iterator[Measurement]:
    """Check that masks made on the host, of the device's attention, hide whole parts of the paper's trees."""
    config = case.make_config(mask={"balance": "sinkhorn"})
    learner = create_learner(backend, config)
    load_weights(learner)
    images = draw_images(config, _IMAGES)
    batch = learner.prepare_batch(images)
    trees = []
    for matrix in np.concatenate(list(batch.compute_similarity())):
        trees.append(build_tree(balance_similarity(matrix.astype(np.float64))))
    masker = make_masker("evolved", config.masks, config.units, "host")
    wrong = 0
    for step, progress in enumerate(_PROGRESS):
        mask, _ = masker(learner.prepare_batch(images), progress, (3, step))
        wrong += _count_wrong_masks(mask, trees, progress, config.masks.ratio)
    share = wrong / (len(_PROGRESS) * len(images))
    yield Measurement("", share, _NEAR_TIES, "share of masks that are not made of whole parts")


def compare_device_masks(backend: Backend, case: Case) -> Iterator[Measurement]:
    """Compare masks and figures of hierarchies that the device builds with those that the host builds."""
    config = case.make_config(mask={"balance": "sinkhorn"})
    learner = create_learner(backend, config)
    load_weights(learner)
    images = draw_images(config, _IMAGES)
    if not isinstance(learner.prepare_batch(images), PreparedOnDevice):
        raise SkipError(f"{backend.name} builds no trees on its device")
    maskers = [make_masker("evolved", config.masks, config.units, build) for build in ("host", "device")]
    different = 0
    largest_gap = 0.0
    for step, progress in enumerate(_PROGRESS):
        (expected, figures), (found, device_figures) = (
            masker(learner.prepare_batch(images), progress, (3, step)) for masker in maskers
        )
        different += int((copy_to_host(found) != expected).any(axis=1).sum())
        for name, figure in figures.items():
            gap = abs(float(device_figures[name]) - float(figure)) / max(abs(float(figure)), 1)
            largest_gap = max(largest_gap, gap)
    share = different / (len(_PROGRESS) * len(images))
    yield Measurement("masks", share, _NEAR_TIES, "share that differs from the host's")
    yield Measurement("figures", largest_gap, _NEAR_TIES, "heights and parts beside the host's")


def _draw_similarity(patches: int) -> NDArray[np.float32]:
    """Draw similarities (B, N, N) without structure, of a few kinds of patches, and with hubs."""
    rng = np.random.default_rng(patches)
    noise = rng.random((3, patches, patches))
    kinds = rng.integers(0, max(2, patches // 12), patches)
    noise[1] = 0.5 * (kinds[:, None] == kinds) + 0.2 * noise[1]
    noise[2] = 0.05 * noise[2] + rng.random(patches)
    symmetric: NDArray[np.float32] = ((noise + noise.swapaxes(1, 2)) / 2).astype(np.float32)
    return symmetric


def _list_parts(parent: NDArray[np.integer[Any]], patches: int) -> set[frozenset[int]]:
    """Return the leaves below each node of a tree, from the parents (M,)."""
    leaves: list[set[int]] = [{node} if node < patches else set() for node in range(len(parent))]
    for node, above in enumerate(parent):
        if above >= 0:
            leaves[above] |= leaves[node]
    return {frozenset(below) for below in leaves}


def _count_wrong_masks(mask: NDArray[np.bool_], trees: list[Tree], progress: float, ratio: float) -> int:
    """Count the masks (B, N) that hide another number of patches, or parts that their trees do not have."""
    wanted = math.floor(ratio * mask.shape[1] + 0.5)
    wrong = 0
    for row, tree in zip(mask, trees, strict=True):
        wrong += int(row.sum() != wanted or not follows_tree(row, tree, progress))
    return wrong
