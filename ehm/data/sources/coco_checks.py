"""Find what is wrong with annotations in COCO's format before anything is trained on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from ehm.data.sources.coco_shapes import Annotation, decode_mask
from ehm.errors import DataError
from ehm.storage.reading import describe_value, shorten

__all__ = ["check_images_and_categories", "find_problems", "is_known"]

_LARGEST_SIDE = 2**31
"""The first number of pixels that the 32 bits of pycocotools cannot hold."""


def check_images_and_categories(
    file: Path,
    images: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    categories: Sequence[tuple[Any, str]],
) -> None:
    """Raise DataError if there are no images or no categories, if one occurs twice, or if an image has no size."""
    if not images or not categories:
        raise DataError(f"{file}: names no {'images' if not images else 'categories'}")
    for name, size in zip(names, sizes, strict=True):
        if not all(1 <= side < _LARGEST_SIDE for side in size):
            raise DataError(f"{file}: image {name}: height and width should be 1 at least, and below 2^31")
    for what, keys in (
        ("two images have the id", map(itemgetter("id"), images)),
        ("two categories have the id", map(itemgetter(0), categories)),
        ("two categories have the name", map(itemgetter(1), categories)),
    ):
        for key, count in Counter(keys).items():
            if count > 1:
                raise DataError(f"{file}: {what} {shorten(str(key))}")


def find_problems(each: Annotation, numbers: Mapping[int, int], size: tuple[int, int], masks: bool) -> Iterator[str]:
    """Yield the problems that make an object useless, each with what would be right."""
    if not is_known(each.get("category_id"), numbers):
        yield f"no category has the id {describe_value(each.get('category_id'))}"
    box = each.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_coordinate, box)):
        yield f"bbox should be [left, top, width, height], not {describe_value(box)}"
    if not masks:
        return
    shape = each.get("segmentation")
    if not shape:
        yield "has no segmentation; masks=false trains on boxes alone"
    elif isinstance(shape, list):
        if not all(map(_is_polygon, shape)):
            yield "segmentation: a polygon should be a list of x, y, x, y, … of three points at least"
    elif not isinstance(shape, dict) or shape.get("size") != list(size) or "counts" not in shape:
        yield f"segmentation should be polygons, or a run-length code with counts and the size {list(size)}"
    else:
        try:
            decode_mask(shape, *size)
        except (ValueError, TypeError, RuntimeError):
            yield f"segmentation: its counts are no run-length code of {size[0]} x {size[1]} pixels"


def is_known(value: Any, known: Mapping[Any, int]) -> bool:
    """Return whether ``value`` is an id that is ``known``, and not of a kind that ids cannot have."""
    return isinstance(value, int | str) and value in known


def _is_polygon(ring: Any) -> bool:
    return isinstance(ring, list) and len(ring) >= 6 and len(ring) % 2 == 0 and all(map(_is_coordinate, ring))


def _is_coordinate(value: Any) -> bool:
    """Return whether ``value`` is a number of pixels that pycocotools takes."""
    return type(value) in (int, float) and abs(value) < _LARGEST_SIDE
