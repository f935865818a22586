"""Boxes of detectors in NumPy and float64: anchors, matches, suppression of doubles, and maps cut out of maps.

A box is left, top, right and bottom in pixels: boxes are (n, 4). Maps are (h, w, D).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ehm.reference.layers import Floats

__all__ = ["align_regions", "decode_boxes", "encode_boxes", "make_anchors", "measure_overlap", "suppress_doubles"]

Indices = NDArray[np.int64]
_LARGEST_GROWTH = math.log(1000 / 16)
"""Largest logarithm by which a box may be enlarged."""


def make_anchors(size: int, ratios: Sequence[float], grid: tuple[int, int], stride: tuple[int, int]) -> Floats:
    """Make the anchors of a map, those of one place together: boxes of the area ``size`` squared, in whole pixels."""
    roots = np.sqrt(np.array(ratios))
    half_widths = size / roots / 2
    half_heights = size * roots / 2
    around_zero = np.round(np.stack([-half_widths, -half_heights, half_widths, half_heights], axis=1))
    rows, columns = np.mgrid[: grid[0], : grid[1]].reshape(2, -1)
    places = np.stack([columns * stride[1], rows * stride[0]] * 2, axis=1)
    anchors: Floats = (places[:, None] + around_zero).reshape(-1, 4)
    return anchors


def measure_overlap(left: Floats, right: Floats) -> Floats:
    """Divide the intersection of each pair of boxes by their union: (n, 4), (m, 4) -> (n, m)."""
    first = np.maximum(left[:, None, :2], right[None, :, :2])
    last = np.minimum(left[:, None, 2:], right[None, :, 2:])
    both = np.clip(last - first, 0, None).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (left, right)]
    overlap: Floats = both / (areas[0][:, None] + areas[1] - both)
    return overlap


def encode_boxes(targets: Floats, boxes: Floats, weights: tuple[float, float]) -> Floats:
    """Describe ``targets`` by the way from ``boxes`` to them: shifts and logarithms of growth, times ``weights``."""
    size = boxes[:, 2:] - boxes[:, :2]
    wanted = targets[:, 2:] - targets[:, :2]
    shift = (targets[:, :2] + targets[:, 2:] - boxes[:, :2] - boxes[:, 2:]) / 2 / size
    return np.concatenate([weights[0] * shift, weights[1] * np.log(wanted / size)], axis=1)


def decode_boxes(deltas: Floats, boxes: Floats) -> Floats:
    """Go the way that :func:`encode_boxes` describes with weights of 1."""
    size = boxes[:, 2:] - boxes[:, :2]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + deltas[:, :2] * size
    half = np.exp(np.minimum(deltas[:, 2:], _LARGEST_GROWTH)) * size / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def suppress_doubles(boxes: Floats, scores: Floats, most: float) -> Indices:
    """Return the boxes that overlap by ``most`` at most with each that is likelier and stays, the likeliest first."""
    overlap = measure_overlap(boxes, boxes)
    kept: list[int] = []
    for index in np.argsort(-scores):
        if all(overlap[index, other] <= most for other in kept):
            kept.append(int(index))
    return np.array(kept, np.int64)


def align_regions(values: Floats, boxes: Floats, scale: float, side: int, samples: tuple[int, int]) -> Floats:
    """Cut boxes out of a map at ``scale``: (h, w, D), (n, 4) -> (n, side, side, D) (RoIAlign: He et al., 2017).

    A cell is the mean of ``samples`` points, so many down and so many across.
    """
    left, top, right, bottom = (boxes * scale).T
    down = _weigh_points(top, bottom, values.shape[0], side, samples[0])
    across = _weigh_points(left, right, values.shape[1], side, samples[1])
    rows = np.tensordot(down, values, axes=([2], [0]))
    regions: Floats = np.einsum("nikc,nlk->nilc", rows, across, optimize=True)
    return regions


def _weigh_points(start: Floats, end: Floats, length: int, side: int, samples: int) -> Floats:
    """Return the weights (n, side, length) of a line's places in the cells of n intervals."""
    extent = np.maximum(end - start, 1)
    count = side * samples
    points = start[:, None] + (np.arange(count) + 0.5) * extent[:, None] / count
    inside = (points >= -1) & (points <= length)
    clipped = np.clip(points, 0, length - 1)
    weights = np.clip(1 - np.abs(clipped[..., None] - np.arange(length)), 0, None) * inside[..., None]
    cells: Floats = weights.reshape(len(start), side, samples, length).mean(axis=2)
    return cells
