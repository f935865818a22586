"""From the patches that a model predicts back to pixels, in NumPy, for every backend.

Shapes: B images of H x W pixels, N patches of s x s pixels, P = 3 * s**2 values of a patch. ``mean`` and ``std`` are
those of R, G and B that the model's pixels were normalised with.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import Reconstruction

__all__ = [
    "join_patches",
    "reconstruct_features",
    "reconstruct_normalised_patches",
    "reconstruct_patches",
    "reconstruct_tokens",
    "split_patches",
    "to_colours",
]

Floats = NDArray[np.floating[Any]]
Means = tuple[float, ...]

_VARIANCE_FLOOR = 1e-6
"""Number that MAE adds to the variance of a patch before it divides by its root, which may be 0."""


def reconstruct_patches(predicted: Floats, image_size: tuple[int, int], mean: Means, std: Means) -> Reconstruction:
    """Return the reconstruction of predicted patches (B, N, s, s, 3), which are normalised as the images are."""
    pixels = to_colours(join_patches(predicted, image_size), mean, std)
    return Reconstruction(pixels, note="The model predicts the pixels themselves.")


def reconstruct_normalised_patches(predicted: Floats, images: Floats, mean: Means, std: Means) -> Reconstruction:
    """Return the reconstruction of patches (B, N, s, s, 3), each normalised by its own mean and variance (MAE).

    These are taken from the true ``images`` (B, 3, H, W), which are normalised by ``mean`` and ``std``, as the model
    does not predict them.
    """
    true = split_patches(images, predicted.shape[2])
    centre = true.mean(axis=(2, 3, 4), keepdims=True)
    variance = true.var(axis=(2, 3, 4), ddof=1, keepdims=True)
    patches = predicted * np.sqrt(variance + _VARIANCE_FLOOR) + centre
    pixels = to_colours(join_patches(patches, (images.shape[2], images.shape[3])), mean, std)
    return Reconstruction(
        pixels,
        note="The model predicts what a patch looks like apart from its brightness and contrast "
        "(model.norm_pix_loss), so that each predicted patch is shown with the mean and the variance of the true one.",
    )


def reconstruct_tokens(
    pixels: NDArray[np.float32] | None, true_pixels: NDArray[np.float32] | None, is_right: NDArray[np.bool_]
) -> Reconstruction:
    """Return the reconstruction of visual tokens, of which ``is_right`` (B, N) says whether they are the true ones.

    ``pixels`` and ``true_pixels`` (B, H, W, 3) are those that predicted and true tokens stand for, None if their
    tokenizer has no decoder.
    """
    note = "The model predicts visual tokens, which the decoder of their tokenizer turns into pixels."
    if pixels is None:
        note = "The model predicts visual tokens, and DALL-E's encoder has no decoder to make pixels of them."
    return Reconstruction(pixels, true_pixels, is_right.astype(np.float32), "right token", note)


def reconstruct_features(cosine: NDArray[np.float32]) -> Reconstruction:
    """Return the reconstruction of features, of which ``cosine`` (B, N) compares predicted with true ones."""
    return Reconstruction(
        agreement=cosine,
        agreement_name="cosine",
        note="The model predicts features and no pixels. The cosine between the predicted features of a patch and "
        "the teacher's is 1 if they point the same way, and 0 if they have nothing in common.",
    )


def split_patches(images: Floats, side: int) -> Floats:
    """Cut images (B, 3, H, W) into patches (B, N, side, side, 3), row by row."""
    batch, channels, height, width = images.shape
    cells = images.reshape(batch, channels, height // side, side, width // side, side)
    return cells.transpose(0, 2, 4, 3, 5, 1).reshape(batch, -1, side, side, channels)


def join_patches(patches: Floats, image_size: tuple[int, int]) -> Floats:
    """Put patches (B, N, s, s, 3), row by row, together to images (B, H, W, 3)."""
    batch, _, side, _, channels = patches.shape
    height, width = image_size
    cells = patches.reshape(batch, height // side, width // side, side, side, channels)
    return cells.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height, width, channels)


def to_colours(pixels: Floats, mean: Means, std: Means) -> NDArray[np.float32]:
    """Return normalised ``pixels`` (..., 3) as fractions of white, float32."""
    return (pixels * np.array(std) + np.array(mean)).astype(np.float32)
