"""Images, the masks that a pretraining run hides them with, and their reconstruction by its model.

Shapes: B images of H x W pixels, U mask units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import SupportsFloat

import numpy as np
from numpy.typing import NDArray

from ehm.backends.base import Learner, PreparedBatch, Reconstruction
from ehm.config import TrainConfig
from ehm.masking import Hierarchy, balance, build_hierarchy, make_masker

__all__ = ["MaskedImages", "reconstruct_images"]


@dataclass(frozen=True)
class MaskedImages:
    """Images (B, H, W, 3), a mask (B, U) for each at ``progress`` of training, and a model's reconstruction.

    ``figures`` are those that the masker reports for each image. ``hierarchy`` has the trees that the masks were made
    of; None if the masking builds none.
    """

    images: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    progress: float
    seed: int
    figures: Sequence[Mapping[str, SupportsFloat]]
    hierarchy: Hierarchy | None
    reconstruction: Reconstruction

    @property
    def levels(self) -> NDArray[np.int64]:
        """The level at which each image's tree was cut: (B,)."""
        return np.array([round(float(figures["mask_level"])) for figures in self.figures])


def reconstruct_images(
    learner: Learner, config: TrainConfig, images: NDArray[np.uint8], progress: float, seed: int
) -> MaskedImages:
    """Mask images (B, H, W, 3) as the run of ``config`` does at ``progress``, and let ``learner`` fill them in.

    Masks depend on ``seed``, the rows of the images and, for maskings by similarity or saliency, on the model. All
    processes that train together call this, with the same images.
    """
    # hierarchies are built on the host, whatever the run does; there is one mask for each image
    masker = make_masker(config.masking, config.masks.model_copy(update={"views": 1}), config.units)
    batch = _CachedBatch(learner.prepare_batch(images))
    masks = []
    figures = []
    # masked one by one, because a masker reports figures of a batch and not of each image
    for index in range(len(images)):
        mask, values = masker(_OneImage(batch, index), progress, (seed,), first=index)
        masks.append(mask)
        figures.append(values)
    mask = np.concatenate(masks)
    hierarchy = None
    if "mask_level" in figures[0]:
        similarity = batch.similarity
        if config.mask.balance == "sinkhorn":
            similarity = balance(similarity)
        hierarchy = build_hierarchy(similarity)
    reconstruction = learner.reconstruct_images(images, mask)
    return MaskedImages(images, mask, progress, seed, figures, hierarchy, reconstruction)


class _CachedBatch:
    """A prepared batch whose similarity and saliency are computed once, when a masker first asks for them."""

    def __init__(self, batch: PreparedBatch) -> None:
        self.images = batch.images
        self._batch = batch

    @cached_property
    def similarity(self) -> NDArray[np.float32]:
        """The similarity of the units of each image: (B, U, U)."""
        return np.concatenate(list(self._batch.compute_similarity()))

    @cached_property
    def saliency(self) -> NDArray[np.float32]:
        """The saliency of the units of each image: (B, U)."""
        return np.concatenate(list(self._batch.compute_saliency()))


class _OneImage:
    """One image of a batch, with the methods that a masker calls."""

    def __init__(self, batch: _CachedBatch, index: int) -> None:
        self._batch = batch
        self._row = slice(index, index + 1)
        self.images = batch.images[self._row]

    def compute_similarity(self) -> list[NDArray[np.float32]]:
        """See :meth:`ehm.backends.base.PreparedBatch.compute_similarity`."""
        return [self._batch.similarity[self._row]]

    def compute_saliency(self) -> list[NDArray[np.float32]]:
        """See :meth:`ehm.backends.base.PreparedBatch.compute_saliency`."""
        return [self._batch.saliency[self._row]]
