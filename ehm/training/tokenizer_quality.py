"""The quality of a tokenizer: the errors of images reconstructed from its codes, and the share of codes in use.

Shapes: B images of H x W pixels, each of N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ehm.analysis.draw import enlarge_patches
from ehm.analysis.mosaic import Tile, compose_mosaic
from ehm.backends.base import TokenizerLearner
from ehm.config import TokenizerConfig
from ehm.data import EvalTransform, Loader, Source
from ehm.storage.writing import replace_file

__all__ = ["Quality", "Reconstructions", "draw_reconstructions", "measure_quality"]

MOST_IMAGES = 512
"""The largest number of images that a tokenizer is measured on."""
_MOST_AT_ONCE = 64
_SHOWN_IMAGES = 8
_CELL_PIXELS = 160
"""The approximate side of a picture on the page."""


@dataclass(frozen=True)
class Quality:
    """The quality of the tokens of ``images`` images, cropped at their centres.

    ``mse`` is the mean squared error of pixels in [0, 1] that are reconstructed from tokens. ``mean_mse`` is the error
    of filling each image with its mean colour, which useless tokens would not beat. ``codes_used`` is the share of the
    vocabulary that occurs, and ``perplexity`` the exponential of the entropy of the distribution of codes.
    """

    images: int
    mse: float
    mean_mse: float
    codes_used: float
    perplexity: float


@dataclass(frozen=True)
class Reconstructions:
    """The first images that were measured (B, H, W, 3), their reconstructions in [0, 1], and squared errors (B,)."""

    images: NDArray[np.uint8]
    reconstructed: NDArray[np.float32]
    errors: NDArray[np.float32]


def measure_quality(
    tokenizer: TokenizerLearner, source: Source, config: TokenizerConfig
) -> tuple[Quality, Reconstructions]:
    """Tokenize and reconstruct images of ``source``; return the quality of all, and the first few to draw."""
    # spread evenly, as a source may be sorted by class
    chosen = np.unique(np.linspace(0, len(source) - 1, min(len(source), MOST_IMAGES)).astype(np.int64))
    loader = Loader(
        source,
        EvalTransform(config.image_size),
        batch_size=min(_MOST_AT_ONCE, config.optim.batch_size),
        seed=0,
        shuffle=False,
        drop_last=False,
        workers=0,
        subset=chosen,
    )
    errors = []
    mean_colour_errors = []
    shown = None
    counts = np.zeros(config.vocabulary, np.int64)
    for batch in loader.batches(0, loader.steps_per_epoch):
        reconstructed, tokens = tokenizer.reconstruct_images(batch.images)
        pixels = batch.images.astype(np.float32) / 255
        error = ((reconstructed - pixels) ** 2).mean(axis=(1, 2, 3))
        errors.append(error)
        mean_colour_errors.append(pixels.var(axis=(1, 2)).mean(axis=1))
        counts += np.bincount(tokens.ravel(), minlength=config.vocabulary)
        if shown is None:
            shown = Reconstructions(batch.images[:_SHOWN_IMAGES], reconstructed[:_SHOWN_IMAGES], error[:_SHOWN_IMAGES])
    assert shown is not None  # a source has images
    # without codes that never occur: they add nothing to the entropy, but their log would be infinite
    shares = counts[counts > 0] / counts.sum()
    quality = Quality(
        images=len(chosen),
        mse=float(np.concatenate(errors).mean()),
        mean_mse=float(np.concatenate(mean_colour_errors).mean()),
        codes_used=float((counts > 0).mean()),
        perplexity=float(np.exp(-(shares * np.log(shares)).sum())),
    )
    return quality, shown


def draw_reconstructions(shown: Reconstructions, folder: Path) -> None:
    """Write ``reconstructions.png``: a row of originals, and below them their reconstructions."""
    cell = max(1, _CELL_PIXELS // shown.images.shape[2])
    above = [Tile(enlarge_patches(image, cell)) for image in shown.images]
    below = []
    for image, error in zip(shown.reconstructed, shown.errors, strict=True):
        pixels = (255 * image).round().astype(np.uint8)
        below.append(Tile(enlarge_patches(pixels, cell), (f"MSE {error:.4f}",)))
    title = "Images, and what their tokens keep of them"
    page = compose_mosaic(title, [f"Tokenizer: {folder}"], [""] * len(above), [above, below])
    with replace_file(folder / "reconstructions.png") as temporary:
        page.save(temporary, format="PNG")
