"""Attention and features that masks are made of: passes over the images of a batch, by the model of ``mask.source``.

Shapes: B images of H x W pixels, b of a piece, N output tokens of the encoder, U mask units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, SupportsFloat, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ehm.backends.torch.engine.distributed import gather_parameters
from ehm.backends.torch.engine.hierarchy import balance, build_hierarchy
from ehm.backends.torch.engine.masks import describe_parts, hierarchical_mask
from ehm.backends.torch.engine.step import without_dropping
from ehm.backends.torch.engine.tensors import Pixels
from ehm.backends.torch.engine.transfers import start_download, upload_array
from ehm.backends.torch.models.attention import cosine_similarity
from ehm.config import TrainConfig

__all__ = ["MaskSource", "TorchBatch"]

_PIECE = 64
"""Images whose similarity is computed and sent to the host together."""

T = TypeVar("T")


class TorchBatch:
    """Implements :class:`ehm.backends.base.PreparedBatch` and :class:`ehm.backends.base.MasksOnDevice`.

    The images travel to the device as soon as a batch is prepared. What the similarity or the saliency pass embeds is
    kept in ``embedded`` for the training step: the patch embedding runs once, with gradient (section V-E).
    """

    def __init__(self, source: MaskSource, images: NDArray[np.uint8], uploads: Iterable[Callable[[], Tensor]]) -> None:
        self.images = images
        self.uploads = list(uploads)
        """For each chunk of the accumulation a function that returns its images on the device."""
        self.embedded: list[tuple[Tensor, Tensor | None]] = []
        """For each chunk of the accumulation its pixels, and its tokens if the training step can use them."""
        self._source = source

    def compute_similarity(self) -> Iterable[NDArray[np.float32]]:
        """See :meth:`ehm.backends.base.PreparedBatch.compute_similarity`. All of it is on its way when this returns."""
        waits = self._source.compute_similarity(self, start_download)
        return (wait() for wait in waits)

    def compute_saliency(self) -> Iterable[NDArray[np.float32]]:
        """See :meth:`ehm.backends.base.PreparedBatch.compute_saliency`. All of it is on its way when this returns."""
        waits = self._source.compute_saliency(self, start_download)
        return (wait() for wait in waits)

    def compute_evolved_masks(
        self, depth: float, ranks: NDArray[np.int32]
    ) -> tuple[Tensor, Mapping[str, SupportsFloat]]:
        """See :meth:`ehm.backends.base.MasksOnDevice.compute_evolved_masks`."""
        return self._source.compute_evolved_masks(self, depth, ranks)


class MaskSource:
    """The ``model`` that masks go by, and its passes over the images of a batch.

    ``pixels`` normalises images, and ``autocast`` gives a context in the type of the run. With ``shares_embedding`` the
    patches are embedded with gradient, and the training step takes their tokens; with ``has_dropout`` the model drops
    something in training, which these passes do not.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: Any,
        pixels: Pixels,
        autocast: Callable[[], AbstractContextManager[Any]],
        shares_embedding: bool,
        has_dropout: bool,
    ) -> None:
        self._config = config
        self._model = model
        self._pixels = pixels
        self._autocast = autocast
        self._shares_embedding = shares_embedding
        self._has_dropout = has_dropout

    def compute_similarity(self, batch: TorchBatch, send: Callable[[Tensor], T]) -> list[T]:
        """Compute the similarities (b, U, U) of the mask units of ``batch`` piece by piece, and ``send`` each piece.

        The tokens stay in ``batch.embedded``.
        """
        blocks = self._config.mask.blocks
        pool = partial(_mean_over_units, grid=self._config.spec.grid, units=self._config.units)

        def compute_from_attention(model: Any, tokens: Tensor) -> Tensor:
            similarity: Tensor = model.compute_similarity(tokens, blocks)
            return pool(pool(similarity).transpose(1, 2))

        def compute_from_features(model: Any, tokens: Tensor) -> Tensor:
            features: Tensor = model.compute_features(tokens, blocks)
            return cosine_similarity(pool(features.transpose(1, 2)).transpose(1, 2))

        function = compute_from_attention if self._config.mask.similarity == "attention" else compute_from_features
        return self._apply_to_tokens(batch, function, slice(blocks), send)

    def compute_saliency(self, batch: TorchBatch, send: Callable[[Tensor], T]) -> list[T]:
        """Compute the saliencies (b, U) of the mask units of ``batch`` piece by piece, and ``send`` each piece.

        The tokens stay in ``batch.embedded``.
        """
        pool = partial(_mean_over_units, grid=self._config.spec.grid, units=self._config.units)

        def compute_units(model: Any, tokens: Tensor) -> Tensor:
            return pool(model.compute_saliency(tokens))

        return self._apply_to_tokens(batch, compute_units, slice(-1, None), send)

    @torch.no_grad()
    def compute_evolved_masks(
        self, batch: TorchBatch, depth: float, ranks: NDArray[np.int32]
    ) -> tuple[Tensor, Mapping[str, SupportsFloat]]:
        """Build hierarchies and masks of ``batch`` on the device; see :class:`ehm.backends.base.MasksOnDevice`."""
        similarity = torch.cat(self.compute_similarity(batch, _keep_on_device))
        if self._config.mask.balance == "sinkhorn":
            similarity = balance(similarity)
        tree = build_hierarchy(similarity)
        ratio = self._config.masks.ratio
        views = upload_array(ranks, similarity.device).unbind(1)
        masks = []
        for view in views:
            masks.append(hierarchical_mask(tree, depth, ratio, view))
        # the masks of one image lie one after the other
        return torch.stack(masks, dim=1).flatten(0, 1), describe_parts(tree, depth)

    def _apply_to_tokens(
        self,
        batch: TorchBatch,
        function: Callable[[Any, Tensor], Tensor],
        read: slice,
        send: Callable[[Tensor], T],
    ) -> list[T]:
        """Embed ``batch`` chunk by chunk, apply ``function`` to the model and each piece of tokens, and ``send`` it.

        ``read`` selects the modules whose parameters ``function`` reads outside of their ``forward``: FSDP has to
        gather them.
        """
        model = self._model
        evaluating = without_dropping if self._has_dropout else nullcontext
        sent = []
        batch.embedded = []
        for take_images in batch.uploads:
            pixels = self._pixels.normalise(take_images())
            with gather_parameters([model, *model.stack[read]]), self._autocast(), evaluating(model):
                with torch.set_grad_enabled(self._shares_embedding):
                    tokens = model.embed(pixels)
                batch.embedded.append((pixels, tokens if self._shares_embedding else None))
                with torch.no_grad():
                    for piece in tokens.detach().split(_PIECE):
                        # sent at once, so that the host builds trees of it while the device computes the next
                        sent.append(send(function(model, piece)))
        return sent


def _keep_on_device(piece: Tensor) -> Tensor:
    return piece


def _mean_over_units(values: Tensor, grid: tuple[int, int], units: tuple[int, int]) -> Tensor:
    """Average over the tokens of each mask unit, along the last axis: (..., N) -> (..., U)."""
    if units == grid:
        return values
    cells = values.unflatten(-1, (units[0], grid[0] // units[0], units[1], grid[1] // units[1]))
    return cells.mean(dim=(-3, -1)).flatten(-2)
