"""The pages of ``ehm inspect``: hierarchies, masks and attention of a handful of images (paper, Fig. 6, 7 and 8).

Shapes: B images, H x W pixels, N = h * w patches, L tokens, the last N of which are patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm import masking
from ehm.analysis import draw
from ehm.analysis.colours import PALETTE, choose_part_colours
from ehm.analysis.model import InspectedModel, PreparedImage
from ehm.analysis.mosaic import ColourBar, Tile, compose_mosaic
from ehm.analysis.tiles import choose_cell, describe_mask, describe_part_count, enlarge_image
from ehm.data import EvalTransform
from ehm.data.colour_view import choose_view
from ehm.data.decoding.channels import load_image

__all__ = ["draw_attention_page", "draw_hierarchy_page", "draw_masks_page"]

_PAGE_WIDTH = 1700
"""The approximate width of a page in pixels, which decides the size of tiles."""
_LARGEST_TILE = 380
"""Width of a tile in pixels, at most."""
_SIMILARITY_MASKINGS = ("evolved", "shallow", "deep", "epm")
"""Maskings that are made from the similarity of patches."""
_BOX_COLOURS = (1, 3, 6, 0, 2)
"""Colours of the palette for the boxes around chosen patches: light ones, which show on every photograph."""


def draw_hierarchy_page(model: InspectedModel, files: Sequence[Path], depths: Sequence[float]) -> Image.Image:
    """Draw partitions at fractions ``depths`` of each tree's height (Fig. 6)."""
    images, pictures, _ = _load_images(model, files, 1 + len(depths))
    grid = model.units
    hierarchy = model.build_hierarchy(images)
    # Each tree has its own height, so the same depth is another level in each.
    levels = [masking.masking_level(depth, hierarchy.height) for depth in depths]
    cuts = [hierarchy.cut(level) for level in levels]
    rows = []
    for index, file in enumerate(files):
        height = hierarchy.height[index]
        parts = [cut[index] for cut in cuts]
        colours = choose_part_colours(hierarchy.parent[index], hierarchy.size[index], parts, grid)
        row = [Tile(pictures[index], (file.name, f"tree height {height}"))]
        for level, part in zip(levels, parts, strict=True):
            picture = draw.draw_partition(pictures[index], part.reshape(grid), colours)
            row.append(Tile(picture, (describe_part_count(len(np.unique(part))), f"level {level[index]} of {height}")))
        rows.append(row)
    notes = [
        model.describe(),
        model.describe_similarity(),
        "Depth d cuts a tree at level ceil(d x height): its parts are the largest nodes of at most that level. "
        "Each part has a tint (single patches a pale one) and a white contour; "
        "a growing part keeps the tint of its largest piece.",
    ]
    headings = ["image", *(f"depth {depth:g}" for depth in depths)]
    return compose_mosaic("Hierarchy: the parts of an image at several depths", notes, headings, rows)


def draw_masks_page(model: InspectedModel, files: Sequence[Path], progress: Sequence[float], seed: int) -> Image.Image:
    """Draw masks at fractions ``progress`` of a training run, all from this one model (Fig. 7)."""
    images, pictures, _ = _load_images(model, files, 1 + len(progress))
    grid = model.units
    # One mask for each tile, even if the run masked every image several times.
    masker = masking.make_masker(model.masking, model.mask.model_copy(update={"views": 1}), grid)
    rows = []
    for index, (file, picture) in enumerate(zip(files, pictures, strict=True)):
        image = PreparedImage(model, images[index])
        row = [Tile(picture, (file.name,))]
        for moment in progress:
            # The seed is the same for all moments, so that a row shows the effect of progress alone.
            mask, figures = masker(image, moment, (seed,), first=index)
            row.append(Tile(draw.draw_mask(picture, mask.reshape(grid)), describe_mask(figures)))
        rows.append(row)
    headings = ["image", *(f"progress {moment:g}" for moment in progress)]
    return compose_mosaic("Masks over the progress of training", _list_mask_notes(model, seed), headings, rows)


def draw_attention_page(
    model: InspectedModel, files: Sequence[Path], patches: Sequence[tuple[int, int]]
) -> Image.Image:
    """Draw the attention of the last block from ``patches``, each (row, column), to all patches (Fig. 8)."""
    images, pictures, cell = _load_images(model, files, 1 + len(patches))
    grid = model.encoder.grid
    attention = model.encoder.compute_attention(images).mean(1)  # (B, L, L)
    # as multiples of uniform attention, which gives every token 1 / L
    first = attention.shape[-1] - grid[0] * grid[1]
    shares = attention[:, first:, first:] * attention.shape[-1]
    rows = []
    for picture, share, file in zip(pictures, shares, files, strict=True):
        marked = picture
        heat_maps = []
        for number, patch in enumerate(patches):
            red, green, blue = PALETTE[_BOX_COLOURS[number % len(_BOX_COLOURS)]].tolist()
            marked = draw.draw_box(marked, patch, cell, (red, green, blue))
            weights = share[patch[0] * grid[1] + patch[1]].reshape(grid)
            heat_map = draw.draw_attention(picture, weights / weights.max(), patch, (red, green, blue))
            heat_maps.append(Tile(heat_map, (f"strongest {weights.max():.2g} x uniform",)))
        rows.append([Tile(marked, (file.name,)), *heat_maps])
    notes = [
        model.describe(),
        "Attention of the last block, mean over its heads, from the boxed patch (row,column, counted from 0) to every "
        "patch. Each map is scaled to its strongest patch; uniform is an equal share for every token.",
    ]
    headings = ["image", *(f"from patch {row},{column}" for row, column in patches)]
    bar = ColourBar(draw.draw_heat_bar(), "attention 0", "strongest")
    return compose_mosaic("Attention of chosen patches", notes, headings, rows, bar)


def _load_images(
    model: InspectedModel, files: Sequence[Path], columns: int
) -> tuple[NDArray[np.uint8], list[NDArray[np.uint8]], int]:
    """Load images for the encoder: (B, H, W, C).

    Also returns them enlarged for a page of ``columns`` tiles, and the side of a patch on that page in pixels.
    """
    encoder = model.encoder
    cell = choose_cell(encoder.grid, min(_PAGE_WIDTH // columns, _LARGEST_TILE))
    transform = EvalTransform.from_spec(encoder.image_size, encoder.inputs)
    pixels = encoder.inputs.pixels.with_file_range(model.value_range)
    images = np.stack([transform(load_image(file, pixels)) for file in files])
    shown = images if pixels.is_rgb else choose_view(images, pixels).show(images)
    pictures = [enlarge_image(image, encoder.grid, cell) for image in shown]
    return images, pictures, cell


def _list_mask_notes(model: InspectedModel, seed: int) -> list[str]:
    """Return the notes below a page of masks."""
    units = model.units[0] * model.units[1]
    unit_name = "patches" if model.side == 1 else "units"
    notes = [model.describe()]
    if model.masking in _SIMILARITY_MASKINGS:
        notes.append(model.describe_similarity())
    deepening = ""
    if model.masking == "evolved":
        low, high = model.mask.depth_range
        deepening = (
            f" Parts grow with the progress of training: {model.mask.schedule} schedule, depth {low:g} to {high:g}."
        )
    notes.append(
        f"Grey {unit_name} are masked: {round(model.mask.ratio * units)} of {units} (ratio {model.mask.ratio:g}), "
        f"by {model.masking} masking (seed {seed}).{deepening} "
        "All masks here come from this one model; in a run it learns between them."
    )
    return notes
