"""A page of images, the masks that a pretraining run hides them with, and their reconstruction by its model.

Shapes: B images of H x W pixels, (h, w) output tokens of the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.analysis import draw
from ehm.analysis.colours import choose_part_colours
from ehm.analysis.masked_images import MaskedImages
from ehm.analysis.mosaic import ColourBar, Tile, compose_mosaic
from ehm.analysis.tiles import choose_cell, describe_mask, describe_part_count, enlarge_image
from ehm.config import TrainConfig
from ehm.config.pixel_format import PixelFormat
from ehm.data.colour_view import ColourView, choose_view
from ehm.masking import Hierarchy, spread_mask

__all__ = ["draw_reconstruction_page"]

_TILE_WIDTH = 208
"""The approximate width of a tile in pixels: a page of five columns fits on a screen."""


def draw_reconstruction_page(
    masked: MaskedImages, config: TrainConfig, names: Sequence[str], title: str, notes: Sequence[str]
) -> Image.Image:
    """Draw a row for each image: its parts if the masking has any, its mask, and the reconstruction if there is one."""
    page = _Page(masked, config)
    reconstruction = page.masked.reconstruction
    columns = [("image", page.draw_images(names))]
    if masked.hierarchy is not None:
        columns.append(("parts", page.draw_parts(masked.hierarchy)))
    columns.append(("mask", page.draw_masks()))
    bar = None
    if reconstruction.pixels is not None:
        columns.append(("reconstruction", page.draw_filled(reconstruction.pixels)))
        columns.append(("all predicted", page.draw_pixels(reconstruction.pixels)))
    elif reconstruction.agreement is not None:
        columns.append((reconstruction.agreement_name, page.draw_agreement(reconstruction.agreement)))
        bar = ColourBar(draw.draw_heat_bar(), f"{reconstruction.agreement_name} 0", "1")
    if reconstruction.best_pixels is not None:
        columns.append(("perfect prediction", page.draw_pixels(reconstruction.best_pixels)))
    headings = [heading for heading, _ in columns]
    rows = list(zip(*(tiles for _, tiles in columns), strict=True))
    return compose_mosaic(title, [*notes, *page.describe()], headings, rows, bar)


class _Page:
    """The tiles of a page, column by column."""

    def __init__(self, masked: MaskedImages, config: TrainConfig) -> None:
        pixels = config.data.pixels
        self._view = None if pixels.is_rgb else choose_view(masked.images, pixels)
        if self._view is not None:
            masked = _show_in_colours(masked, self._view, pixels)
        self._masked = masked
        self._config = config
        self._grid = config.spec.grid
        self._cell = choose_cell(self._grid, _TILE_WIDTH)
        self._pictures = [enlarge_image(image, self._grid, self._cell) for image in masked.images]
        self._hidden_units = masked.mask.reshape(-1, *config.units)
        tokens = spread_mask(masked.mask, config.units, config.unit // config.spec.stride)
        self._hidden_tokens = tokens.reshape(-1, *self._grid)
        self._hidden_pixels = self._hidden_units.repeat(config.unit, axis=1).repeat(config.unit, axis=2)

    @property
    def masked(self) -> MaskedImages:
        """The images and their reconstruction, in the colours that are drawn."""
        return self._masked

    def draw_images(self, names: Sequence[str]) -> list[Tile]:
        """Draw the images as the model sees them."""
        return [Tile(picture, (name,)) for picture, name in zip(self._pictures, names, strict=True)]

    def draw_parts(self, hierarchy: Hierarchy) -> list[Tile]:
        """Draw the parts that masks were made of: the cuts of the trees at the level of the masks."""
        cuts = hierarchy.cut(self._masked.levels)
        tiles = []
        for index, (picture, cut) in enumerate(zip(self._pictures, cuts, strict=True)):
            colours = choose_part_colours(hierarchy.parent[index], hierarchy.size[index], [cut], self._config.units)
            drawn = draw.draw_partition(picture, cut.reshape(self._config.units), colours)
            tiles.append(Tile(drawn, describe_mask(self._masked.figures[index])))
        return tiles

    def draw_masks(self) -> list[Tile]:
        """Draw the images with hidden units in grey."""
        tiles = []
        for picture, hidden, figures in zip(self._pictures, self._hidden_units, self._masked.figures, strict=True):
            lines: tuple[str, ...] = (f"{np.count_nonzero(hidden)} of {hidden.size} hidden",)
            if self._masked.hierarchy is None and "parts" in figures:
                lines += (describe_part_count(round(float(figures["parts"]))),)
            tiles.append(Tile(draw.draw_mask(picture, hidden), lines))
        return tiles

    def draw_filled(self, pixels: NDArray[np.float32]) -> list[Tile]:
        """Draw the images with predicted ``pixels`` (B, H, W, 3) where they are hidden."""
        images = self._masked.images
        filled = np.where(self._hidden_pixels[..., None], _to_bytes(pixels), images)
        flat = _average_patches(images, self._config.spec.stride)
        tiles = []
        for index, picture in enumerate(filled):
            hidden = self._hidden_pixels[index]
            lines: tuple[str, ...] = (
                _describe_error(pixels[index][hidden], images[index][hidden]),
                f"flat patches {_describe_error(flat[index][hidden], images[index][hidden], name='')}",
            )
            agreement = self._masked.reconstruction.agreement
            if agreement is not None:
                lines += (self._describe_agreement(agreement, index),)
            tiles.append(Tile(enlarge_image(picture, self._grid, self._cell), lines))
        return tiles

    def draw_pixels(self, pixels: NDArray[np.float32]) -> list[Tile]:
        """Draw ``pixels`` (B, H, W, 3) everywhere."""
        tiles = []
        for picture, image in zip(pixels, self._masked.images, strict=True):
            line = _describe_error(picture, image)
            tiles.append(Tile(enlarge_image(_to_bytes(picture), self._grid, self._cell), (line,)))
        return tiles

    def draw_agreement(self, agreement: NDArray[np.float32]) -> list[Tile]:
        """Draw how well each token's prediction agrees with its target: (B, h * w)."""
        tiles = []
        for index, picture in enumerate(self._pictures):
            weights = agreement[index].reshape(self._grid).clip(0, 1)
            line = self._describe_agreement(agreement, index)
            tiles.append(Tile(draw.draw_heat(picture, weights), (line,)))
        return tiles

    def describe(self) -> list[str]:
        """Describe masks, parts and reconstructions, for the foot of the page."""
        masked = self._masked
        config = self._config
        hidden = np.count_nonzero(masked.mask[0])
        unit_name = "patches" if config.unit == config.spec.stride else f"units of {config.unit} pixels"
        notes = [
            f"Grey {unit_name} are hidden: {hidden} of {masked.mask.shape[1]}, by {config.masking} masking at progress "
            f"{masked.progress:.3g} of training (seed {masked.seed}, so that pages compare)."
        ]
        if masked.hierarchy is not None:
            notes[0] += " Parts are the cuts of the trees that the masks were made of."
        if self._view is not None:
            notes.append(f"{self._view.describe()} PSNR is that of what is shown.")
        reconstruction = masked.reconstruction
        notes.append(reconstruction.note)
        if reconstruction.pixels is not None:
            notes.append(
                "A reconstruction has the image's own pixels where it is visible, and predicted ones where it is "
                "hidden. Its PSNR is that of the hidden pixels; the line below has the PSNR of filling each hidden "
                "patch with its own true mean colour. Only the prediction of hidden pixels is trained, so that of "
                "visible ones need not be good."
            )
        if reconstruction.agreement is not None:
            notes.append(f"The {reconstruction.agreement_name} below a picture is the mean over its hidden patches.")
        if reconstruction.best_pixels is not None:
            notes.append("A perfect prediction would be the tokens of the image itself.")
        return notes

    def _describe_agreement(self, agreement: NDArray[np.float32], index: int) -> str:
        name = self._masked.reconstruction.agreement_name
        hidden = self._hidden_tokens[index].ravel()
        return f"{name} {agreement[index][hidden].mean():.2f}"


def _show_in_colours(masked: MaskedImages, view: ColourView, pixels: PixelFormat) -> MaskedImages:
    """Return ``masked`` with images and predictions, which may have any channels, in the colours of ``view``."""
    reconstruction = masked.reconstruction
    shown: dict[str, Any] = {}
    for name in ("pixels", "best_pixels"):
        predicted = getattr(reconstruction, name)
        if predicted is not None:
            shown[name] = view.show(predicted * pixels.white).astype(np.float32) / 255
    return replace(masked, images=view.show(masked.images), reconstruction=replace(reconstruction, **shown))


def _to_bytes(pixels: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Return fractions of white as bytes; values outside of [0, 1] are clipped."""
    return (255 * pixels.clip(0, 1)).round().astype(np.uint8)


def _average_patches(images: NDArray[np.uint8], side: int) -> NDArray[np.floating[Any]]:
    """Return images (B, H, W, 3) whose patches are filled with their mean colours, as fractions of white."""
    batch, height, width, channels = images.shape
    cells = images.reshape(batch, height // side, side, width // side, side, channels) / 255
    means = np.broadcast_to(cells.mean(axis=(2, 4), keepdims=True), cells.shape)
    return means.reshape(images.shape)


def _describe_error(predicted: NDArray[np.floating[Any]], true: NDArray[np.uint8], name: str = "PSNR ") -> str:
    """Return the peak signal-to-noise ratio of predicted pixels in words; predictions are clipped to [0, 1]."""
    error = np.square(predicted.clip(0, 1) - true / 255).mean()
    if error == 0:
        return f"{name}without end"
    return f"{name}{-10 * np.log10(error):.1f} dB"
