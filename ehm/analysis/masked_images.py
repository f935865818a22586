"""Images, what a pretraining run hides of them, and what its model makes of the rest.

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
    """Images (B, H, W, 3) under one mask (B, U) each at ``progress`` of training, and what a model makes of them.

    ``figures`` are those of each image's masker. ``hierarchy`` holds the trees that masks were made of, None if the
    masking has none.
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

    Masks follow from ``seed``, the rows of the images and, if the masking goes by the image, the model. Several
    processes that train together all call this, with the same images.
    """
    # built on the host, where pictures are drawn; one mask an image, even if the run makes several
    masker = make_masker(config.masking, config.masks.model_copy(update={"views": 1}), config.units)
    look = _Look(learner.prepare_batch(images))
    masks = []
    figures = []
    # image by image, so that each has figures of its own
    for index in range(len(images)):
        mask, values = masker(_OneImage(look, index), progress, (seed,), first=index)
        masks.append(mask)
        figures.append(values)
    mask = np.concatenate(masks)
    hierarchy = None
    if "mask_level" in figures[0]:
        similarity = look.similarity
        if config.mask.balance == "sinkhorn":
            similarity = balance(similarity)
        hierarchy = build_hierarchy(similarity)
    reconstruction = learner.reconstruct_images(images, mask)
    return MaskedImages(images, mask, progress, seed, figures, hierarchy, reconstruction)


class _Look:
    """A batch of images as a learner sees it, computed once if a masker asks for it."""

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
    """One image of a batch, as a masker takes it."""

    def __init__(self, look: _Look, index: int) -> None:
        self._look = look
        self._row = slice(index, index + 1)
        self.images = look.images[self._row]

    def compute_similarity(self) -> list[NDArray[np.float32]]:
        """See :meth:`ehm.backends.base.PreparedBatch.compute_similarity`."""
        return [self._look.similarity[self._row]]

    def compute_saliency(self) -> list[NDArray[np.float32]]:
        """See :meth:`ehm.backends.base.PreparedBatch.compute_saliency`."""
        return [self._look.saliency[self._row]]
