"""The protocol of maskers, and what all of them share: random streams, masks in pieces, and checks of their input.

Shapes: B images of this process, b of a piece, N patches (mask units), ``views`` masks of each image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, SupportsFloat, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ehm.masking.pieces import BatchMasks, MaskPiece
from ehm.masking.similarity import NotFiniteAttentionError
from ehm.masking.streams import MaskStreams

if TYPE_CHECKING:
    from ehm.config import MaskConfig

__all__ = ["BaseMasker", "Masker", "Prepared", "PreparedOnDevice", "check_pieces", "explain_not_finite"]


class Prepared(Protocol):
    """The images that a masker makes masks for (:class:`ehm.backends.base.PreparedBatch`)."""

    @property
    def images(self) -> NDArray[np.uint8]:
        """The images (B, H, W, C)."""
        ...

    def compute_similarity(self) -> Iterable[NDArray[np.float32]]:
        """Compute the similarity of their patches, in pieces (b, N, N)."""
        ...

    def compute_saliency(self) -> Iterable[NDArray[np.float32]]:
        """Compute the class token's attention to their patches, in pieces (b, N)."""
        ...


@runtime_checkable
class PreparedOnDevice(Protocol):
    """Images whose hierarchies can be built on the device (:class:`ehm.backends.base.MasksOnDevice`)."""

    def compute_evolved_masks(self, depth: float, ranks: NDArray[np.int32]) -> tuple[Any, Mapping[str, SupportsFloat]]:
        """Compute masks (B * views, N) at ``depth`` from ``ranks`` (B, views, 2N - 1), and figures to log."""
        ...


class Masker(Protocol):
    """A function that makes the masks of a step.

    ``progress`` of training is in [0, 1]. ``seed`` belongs to the step and is the same in all processes; ``first`` is
    the row of the whole batch that ``batch`` begins at. The masks of an image depend on these and on the image, not on
    the number of processes that share the batch.

    Hierarchies give the figures ``mask_level`` and ``tree_height``, the number of ``parts`` at the level and the share
    of the patches that the ``largest_part`` holds; ``epm`` gives the latter two, other masks nothing.
    """

    def __call__(
        self, batch: Prepared, progress: float, seed: Sequence[int], first: int = 0
    ) -> tuple[Any, Mapping[str, SupportsFloat]]:
        """Make the masks (B * views, N) of ``batch``, the masks of one image together, and figures to log.

        Each figure is the mean over the batch. Raises ValueError if the similarity or saliency is not of all images and
        patches, and NotFiniteAttentionError if it is not finite.
        """
        ...

    def iterate_pieces(
        self, batch: Prepared, progress: float, seed: Sequence[int], first: int = 0
    ) -> Iterator[MaskPiece]:
        """Make the same masks piece by piece, in order: as soon as the similarity of a piece has arrived."""
        ...


class BaseMasker(ABC):
    """The common part of all maskers, which make masks in pieces."""

    def __init__(self, config: MaskConfig) -> None:
        self._config = config

    def __call__(
        self, batch: Prepared, progress: float, seed: Sequence[int], first: int = 0
    ) -> tuple[Any, Mapping[str, SupportsFloat]]:
        """See :meth:`Masker.__call__`."""
        count = len(batch.images) * self._config.views
        masks = BatchMasks(self.iterate_pieces(batch, progress, seed, first), count)
        return masks.read_all(), masks.read_figures()

    @abstractmethod
    def iterate_pieces(
        self, batch: Prepared, progress: float, seed: Sequence[int], first: int = 0
    ) -> Iterator[MaskPiece]:
        """See :meth:`Masker.iterate_pieces`."""

    def make_streams(self, batch: Prepared, seed: Sequence[int], first: int) -> MaskStreams:
        """Return the random streams of all masks of ``batch``: B * views, those of one image together."""
        return MaskStreams(seed, range(first, first + len(batch.images)), self._config.views)


@contextmanager
def explain_not_finite(values: NDArray[np.float32]) -> Iterator[None]:
    """Raise NotFiniteAttentionError if making masks of ``values`` fails because these are not finite."""
    try:
        yield
    except ValueError as error:
        if np.isfinite(values).all():
            raise
        raise NotFiniteAttentionError(str(error)) from None


def check_pieces(
    name: str, pieces: Iterable[NDArray[np.float32]], batch: Prepared, patches: int
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield the pieces of a similarity or saliency with their rows of ``batch``, as soon as they arrive.

    Raises ValueError unless they are of all images of ``batch`` and of ``patches``.
    """
    images = len(batch.images)
    done = 0
    for piece in pieces:
        if piece.shape[-1] != patches:
            raise ValueError(f"{name} must be of {patches} patches; its shape is {piece.shape}")
        rows = slice(done, done + len(piece))
        done = rows.stop
        if done > images:
            break
        yield rows, piece
    if done != images:
        raise ValueError(f"{name} must be of all {images} images, not of {done}")
