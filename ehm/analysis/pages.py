"""The three pictures of ``ehm inspect``, each a page of up to a handful of images (paper, Fig. 6, 7 and 8).

Shapes: B images, H x W pixels, N = h * w patches, L = 1 + N tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import SupportsFloat

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm import masking
from ehm.analysis import draw
from ehm.analysis.colours import PALETTE, heat, part_colours
from ehm.analysis.mosaic import Tile, mosaic
from ehm.backends.base import Encoder
from ehm.config import MaskConfig
from ehm.data import EvalTransform, decode
from ehm.data.decoding.depth import ValueRange
from ehm.masking import Hierarchy

__all__ = ["Model", "attention_page", "hierarchy_page", "masks_page"]

WIDTH = 1700
"""A page's width in pixels, about; tiles are sized to fit."""
BY_SIMILARITY = ("evolved", "shallow", "deep", "epm")
"""Maskings that go by the similarity of patches."""


@dataclass(frozen=True)
class Model:
    """An encoder, ``origin`` in words, and the masking and its settings that it was or would be trained with.

    A mask unit is ``side`` x ``side`` patches. ``value_range`` is that of deep images in its training.
    """

    encoder: Encoder
    origin: str
    masking: str
    mask: MaskConfig
    side: int = 1
    value_range: ValueRange = None

    @property
    def units(self) -> tuple[int, int]:
        """Mask units down and across, U in all."""
        return self.encoder.grid[0] // self.side, self.encoder.grid[1] // self.side

    def compute_similarity(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Similarity of each two units of (B, H, W, 3) images, as ``mask.similarity`` says: (B, U, U)."""
        if self.mask.similarity == "cosine":
            tokens = self.encoder.compute_tokens(images, self.mask.blocks)
            return masking.cosine_similarity(self._pooled(tokens.swapaxes(1, 2)).swapaxes(1, 2))
        rows = self._pooled(self.encoder.compute_similarity(images, self.mask.blocks))
        return self._pooled(rows.swapaxes(1, 2))

    def compute_saliency(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Mean attention of the class token to the patches of each unit of (B, H, W, 3) images: (B, U)."""
        return self._pooled(self.encoder.compute_attention(images)[:, :, 0, 1:].mean(1))

    def _pooled(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mean over the patches of each unit, along the last axis: (..., N) -> (..., U)."""
        (down, across), side = self.units, self.side
        pooled: NDArray[np.float32] = values.reshape(*values.shape[:-1], down, side, across, side).mean((-3, -1))
        return pooled.reshape(*values.shape[:-1], down * across)

    def hierarchy(self, images: NDArray[np.uint8]) -> Hierarchy:
        """The trees of (B, H, W, 3) images."""
        similarity = self.compute_similarity(images)
        return masking.build_hierarchy(masking.balance(similarity) if self.mask.balance == "sinkhorn" else similarity)

    def note(self) -> str:
        """What the model is and sees, for the foot of a page."""
        (height, width), (down, across) = self.encoder.image_size, self.encoder.grid
        units = f", masked in units of {self.side} x {self.side}" if self.side > 1 else ""
        return (
            f"Model: {self.origin}. It sees the middle of each image at {height} x {width} pixels, "
            f"as {down} x {across} patches{units}."
        )

    def similarity_note(self) -> str:
        """Where the hierarchy comes from."""
        treatment = "balanced (Sinkhorn)" if self.mask.balance == "sinkhorn" else "raw"
        what = "mean attention of" if self.mask.similarity == "attention" else "cosine of the tokens behind"
        return f"Similarity: {what} the first blocks (at most {self.mask.blocks}), {treatment}."


class _PreparedImage:
    """One image of a page, as a masker takes it; several masks of it share the model's one look at it."""

    def __init__(self, model: Model, image: NDArray[np.uint8]) -> None:
        self.images = image[None]
        self._model = model

    def compute_similarity(self) -> list[NDArray[np.float32]]:
        """See :meth:`ehm.backends.base.PreparedBatch.compute_similarity`."""
        return [self._similarity]

    def compute_saliency(self) -> list[NDArray[np.float32]]:
        """See :meth:`ehm.backends.base.PreparedBatch.compute_saliency`."""
        return [self._saliency]

    @cached_property
    def _similarity(self) -> NDArray[np.float32]:
        return self._model.compute_similarity(self.images)

    @cached_property
    def _saliency(self) -> NDArray[np.float32]:
        return self._model.compute_saliency(self.images)


def hierarchy_page(model: Model, files: Sequence[Path], depths: Sequence[float]) -> Image.Image:
    """Partitions at fractions ``depths`` of each tree's height (Fig. 6)."""
    images, shown, _ = _load(model, files, 1 + len(depths))
    grid = model.units
    hierarchy = model.hierarchy(images)
    levels = [masking.masking_level(depth, hierarchy.height) for depth in depths]
    cuts = [hierarchy.cut(level) for level in levels]
    rows = []
    for index, file in enumerate(files):
        height = hierarchy.height[index]
        parts = [cut[index] for cut in cuts]
        colours = part_colours(hierarchy.parent[index], hierarchy.size[index], parts, grid)
        row = [Tile(shown[index], (file.name, f"tree height {height}"))]
        for level, part in zip(levels, parts, strict=True):
            picture = draw.partition(shown[index], part.reshape(grid), colours)
            row.append(Tile(picture, (_count(len(np.unique(part))), f"level {level[index]} of {height}")))
        rows.append(row)
    notes = [
        model.note(),
        model.similarity_note(),
        "Depth d cuts a tree at level ceil(d x height): its parts are the largest nodes of at most that level. "
        "Each part has a tint (single patches a pale one) and a white contour; "
        "a growing part keeps the tint of its largest piece.",
    ]
    headings = ["image", *(f"depth {depth:g}" for depth in depths)]
    return mosaic("Hierarchy: the parts of an image at several depths", notes, headings, rows)


def masks_page(model: Model, files: Sequence[Path], progress: Sequence[float], seed: int) -> Image.Image:
    """Masks at fractions ``progress`` of a training run, all from this one model (Fig. 7)."""
    images, shown, _ = _load(model, files, 1 + len(progress))
    grid = model.units
    masker = masking.make_masker(model.masking, model.mask.model_copy(update={"views": 1}), grid)
    rows = []
    for index, (file, picture) in enumerate(zip(files, shown, strict=True)):
        image = _PreparedImage(model, images[index])
        row = [Tile(picture, (file.name,))]
        for moment in progress:
            mask, figures = masker(image, moment, (seed,), first=index)
            row.append(Tile(draw.masked(picture, mask.reshape(grid)), _lines(figures)))
        rows.append(row)
    units, what = grid[0] * grid[1], "patches" if model.side == 1 else "units"
    low, high = model.mask.depth_range
    deepening = f" Parts grow with the progress of training: {model.mask.schedule} schedule, depth {low:g} to {high:g}."
    notes = [
        model.note(),
        *([model.similarity_note()] if model.masking in BY_SIMILARITY else []),
        f"Grey {what} are masked: {round(model.mask.ratio * units)} of {units} (ratio {model.mask.ratio:g}), "
        f"by {model.masking} masking (seed {seed}).{deepening if model.masking == 'evolved' else ''} "
        "All masks here come from this one model; in a run it learns between them.",
    ]
    headings = ["image", *(f"progress {moment:g}" for moment in progress)]
    return mosaic("Masks over the progress of training", notes, headings, rows)


def attention_page(model: Model, files: Sequence[Path], patches: Sequence[tuple[int, int]]) -> Image.Image:
    """Attention of the last block from ``patches``, each (row, column), to all patches (Fig. 8)."""
    images, shown, cell = _load(model, files, 1 + len(patches))
    grid = model.encoder.grid
    attention = model.encoder.compute_attention(images).mean(1)  # (B, L, L)
    shares = attention[:, 1:, 1:] * attention.shape[-1]  # 1 = what each token gets when all get the same
    rows = []
    for picture, share, file in zip(shown, shares, files, strict=True):
        marked, row = picture, []
        for number, patch in enumerate(patches):
            colour = _mark(number)
            marked = draw.box(marked, patch, cell, colour)
            weights = share[patch[0] * grid[1] + patch[1]].reshape(grid)
            heat_map = draw.attention(picture, weights / weights.max(), patch, colour)
            row.append(Tile(heat_map, (f"strongest {weights.max():.2g} x uniform",)))
        rows.append([Tile(marked, (file.name,)), *row])
    notes = [
        model.note(),
        "Attention of the last block, mean over its heads, from the boxed patch (row,column, counted from 0) to every "
        "patch. Each map is scaled to its strongest patch; uniform is an equal share for every token.",
    ]
    headings = ["image", *(f"from patch {row},{column}" for row, column in patches)]
    bar = np.repeat(heat(np.linspace(0, 1, 320))[None], 22, 0)
    return mosaic("Attention of chosen patches", notes, headings, rows, (bar, "attention 0", "strongest"))


def _load(model: Model, files: Sequence[Path], columns: int) -> tuple[NDArray[np.uint8], list[NDArray[np.uint8]], int]:
    """Images as the encoder takes them, (B, H, W, 3), enlarged for a page of ``columns``, and the pixels a patch."""
    encoder = model.encoder
    cell = max(4, min(WIDTH // columns, 380) // max(encoder.grid))
    size = (encoder.grid[1] * cell, encoder.grid[0] * cell)
    transform = EvalTransform.from_spec(encoder.image_size, encoder.inputs)
    taken = np.stack([transform(decode(file, value_range=model.value_range)) for file in files])
    shown = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)) for image in taken]
    return taken, shown, cell


def _count(count: int) -> str:
    return f"{count} part{'s' * (count != 1)}"


def _lines(figures: Mapping[str, SupportsFloat]) -> tuple[str, ...]:
    """What to write below the mask of one image, of the figures that its masker gives."""
    known = {name: round(float(value)) for name, value in figures.items()}
    lines = [_count(known["parts"])] if "parts" in known else []
    if "mask_level" in known:
        lines.append(f"level {known['mask_level']} of {known['tree_height']}")
    return tuple(lines)


def _mark(number: int) -> draw.Colour:
    red, green, blue = PALETTE[(1, 3, 6, 0, 2)[number % 5]].tolist()
    return red, green, blue
