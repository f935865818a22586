"""A batch of pretraining from its images to its masks.

Shapes: B images of H x W pixels, N mask units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol, SupportsFloat, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = ["MasksOnDevice", "PreparedBatch", "TakesMaskPieces"]


class PreparedBatch(Protocol):
    """This process's images of one step, from which similarities or saliencies and then the step itself are computed.

    A batch is prepared for one step. What :meth:`compute_similarity` or :meth:`compute_saliency` has already
    computed, such as the patch embedding, is used again by :meth:`Learner.train_step`.
    """

    @property
    def images(self) -> NDArray[np.uint8]:
        """The images (B, H, W, 3)."""
        ...

    def compute_similarity(self) -> Iterable[NDArray[np.float32]]:
        """Compute the symmetrised mean attention of the first blocks (Eq. 6), without gradient: (B, N, N).

        In pieces (b, N, N), in order, so that trees of one piece are built while the device works on the next.
        """
        ...

    def compute_saliency(self) -> Iterable[NDArray[np.float32]]:
        """Compute the class token's attention to each patch in the last block, mean over heads: (B, N).

        With all patches visible, without gradient, of the model that ``mask.source`` says. Rows sum to less than 1, as
        the class token attends to itself too. In pieces (b, N), in order.
        """
        ...


class MasksOnDevice(Protocol):
    """A prepared batch whose hierarchies can be built on its device (``mask.build: device``)."""

    def compute_evolved_masks(self, depth: float, ranks: NDArray[np.int32]) -> tuple[Any, Mapping[str, SupportsFloat]]:
        """Compute similarity, hierarchy and masks of the images at ``depth`` in [0, 1], all on the device.

        ``ranks`` (B, views, 2N - 1) come from :func:`ehm.masking.draw_ranks`. Returns masks (B * views, N), those of
        one image together, that stay on the device, and the figures that a :class:`ehm.masking.Masker` logs. Both equal
        those that are computed on the host.
        """
        ...


@runtime_checkable
class TakesMaskPieces(Protocol):
    """A learner whose ``train_step`` also takes :class:`ehm.masking.BatchMasks`.

    It asks for the masks of a part of the batch only when it comes to that part.
    """

    takes_mask_pieces: Literal[True]
