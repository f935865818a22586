"""A masked image model in pretraining on one torch device: the similarity pass, the training step, its state.

Shapes: B images of H x W pixels, N output tokens of the encoder, U mask units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, SupportsFloat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ehm.backends.base import ALONE, Processes
from ehm.backends.common import STEP, chunks, entropy, undecayed
from ehm.backends.torch.engine import hierarchy
from ehm.backends.torch.engine.distributed import shards, unsharded, wrap
from ehm.backends.torch.engine.optim import param_groups
from ehm.backends.torch.engine.step import Training, recompute, seeded
from ehm.backends.torch.engine.tensors import Pixels, download, load_arrays, to_arrays, upload
from ehm.backends.torch.models.attention import cosine_similarity
from ehm.backends.torch.models.beit import VisualTokens
from ehm.backends.torch.models.dvae import load_tokenizer
from ehm.backends.torch.models.loading import begin_with
from ehm.backends.torch.models.pretraining import build_model
from ehm.config import TrainConfig
from ehm.masking import split_mask, spread_mask
from ehm.masking.static import masked_count
from ehm.storage.arrays import LearnerState, split_average, with_average

__all__ = ["TorchLearner"]

_PIECE = 64
"""Images whose similarity is computed and sent to the host together."""


class TorchBatch:
    """Implements :class:`ehm.backends.base.PreparedBatch` and :class:`ehm.backends.base.MasksOnDevice`.

    What the similarity or the saliency pass uploads and embeds is kept in ``embedded`` for the training step: the patch
    embedding runs once, with gradient (section V-E).
    """

    def __init__(self, learner: TorchLearner, images: NDArray[np.uint8]) -> None:
        self.images = images
        self.embedded: list[tuple[Tensor, Tensor | None]] = []
        """For each chunk of the accumulation its pixels, and its tokens if the training step can use them."""
        self._learner = learner

    def similarity(self) -> Iterable[NDArray[np.float32]]:
        """See :meth:`ehm.backends.base.PreparedBatch.similarity`. All of it is on its way when this returns."""
        return _download_all(self._learner.compute_similarity(self))

    def saliency(self) -> Iterable[NDArray[np.float32]]:
        """See :meth:`ehm.backends.base.PreparedBatch.saliency`. All of it is on its way when this returns."""
        return _download_all(self._learner.compute_saliency(self))

    def evolved_mask(self, depth: float, ranks: NDArray[np.int32]) -> tuple[Tensor, Mapping[str, SupportsFloat]]:
        """See :meth:`ehm.backends.base.MasksOnDevice.evolved_mask`."""
        return self._learner.evolve_mask(self, depth, ranks)


class TorchLearner:
    """Implements :class:`ehm.backends.base.Learner`."""

    def __init__(self, config: TrainConfig, device: torch.device, processes: Processes = ALONE) -> None:
        self._config, self._device, self._rank, self._steps = config, device, processes.rank, 0
        self._pixels = Pixels(device, config.data.mean, config.data.std)
        self._words = self._visual_tokens() if config.objective == "beit" else None
        self.model = self._build().train()
        self._ema: Any = None
        if config.optim.ema_decay is not None:
            self._ema = self._build().eval().requires_grad_(False)
            if config.run.parallel == "fsdp":
                wrap(self._ema, "fsdp", processes, device)
        if config.run.grad_checkpointing:
            recompute(self.model, random=config.model.drop_path > 0)
        optim, skip = config.optim, undecayed(config.objective)
        self._training = Training(
            self.model,
            lambda fused: torch.optim.AdamW(
                param_groups(self.model.named_parameters(), skip), lr=optim.lr, betas=optim.betas, fused=fused
            ),
            optim,
            config.run,
            device,
            processes,
        )
        # FSDP reduces gradients in the modules' own passes: there the embedding runs again, inside of them
        self._shares_embedding = config.mask.source == "online" and not shards(config.run.parallel, processes)

    def prepare(self, images: NDArray[np.uint8]) -> TorchBatch:
        """See :meth:`ehm.backends.base.Learner.prepare`."""
        return TorchBatch(self, images)

    def compute_similarity(self, batch: TorchBatch) -> Iterator[Tensor]:
        """Compute the similarities (b, U, U) of the mask units of ``batch`` in pieces, on the device."""
        blocks = self._config.mask.blocks
        pool = partial(_to_units, grid=self._config.spec.grid, units=self._config.units)

        def from_attention(model: Any, tokens: Tensor) -> Tensor:
            similarity: Tensor = model.similarity(tokens, blocks)
            return pool(pool(similarity).transpose(1, 2))

        def from_features(model: Any, tokens: Tensor) -> Tensor:
            features: Tensor = model.features(tokens, blocks)
            return cosine_similarity(pool(features.transpose(1, 2)).transpose(1, 2))

        function = from_attention if self._config.mask.similarity == "attention" else from_features
        return self._apply_to_tokens(batch, function, slice(blocks))

    def compute_saliency(self, batch: TorchBatch) -> Iterator[Tensor]:
        """Compute the saliencies (b, U) of the mask units of ``batch`` in pieces, on the device."""
        pool = partial(_to_units, grid=self._config.spec.grid, units=self._config.units)
        return self._apply_to_tokens(batch, lambda model, tokens: pool(model.saliency(tokens)), slice(-1, None))

    @torch.no_grad()
    def evolve_mask(
        self, batch: TorchBatch, depth: float, ranks: NDArray[np.int32]
    ) -> tuple[Tensor, Mapping[str, SupportsFloat]]:
        """Build hierarchies and masks of ``batch`` on the device; see :class:`ehm.backends.base.MasksOnDevice`."""
        similarity = torch.cat(list(self.compute_similarity(batch)))
        if self._config.mask.balance == "sinkhorn":
            similarity = hierarchy.balance(similarity)
        tree = hierarchy.build_hierarchy(similarity)
        ratio = self._config.masks.ratio
        views = upload(ranks, self._device).unbind(1)
        masks = [hierarchy.hierarchical_mask(tree, depth, ratio, view) for view in views]
        return torch.stack(masks, dim=1).flatten(0, 1), hierarchy.statistics(tree, depth)

    def train_step(
        self, batch: TorchBatch, mask: NDArray[np.bool_] | Tensor, lr: float, weight_decay: float
    ) -> Mapping[str, SupportsFloat]:
        """See :meth:`ehm.backends.base.Learner.train_step`."""
        images = batch.images
        parts = self._split(mask)
        views = len(mask) // len(images)
        # taken from the batch, since the step changes the weights that the tokens come from
        embedded = batch.embedded
        batch.embedded = []
        chunks_left = iter(embedded)

        def compute_loss(rows: slice) -> Tensor:
            pixels, tokens = next(chunks_left) if embedded else (self._pixels(images[rows]), None)
            masked = slice(rows.start * views, rows.stop * views)
            words = {} if self._words is None else {"words": self._words(pixels)}
            with self._training.autocast():
                value: Tensor = self._training.module(pixels, *(part[masked] for part in parts), tokens, **words)
            return value

        random = self._config.model.drop_path > 0
        with seeded(self._device, entropy(self._config.run.seed, self._steps, self._rank)) if random else nullcontext():
            metrics = self._training.step(len(images), compute_loss, lr, weight_decay)
        self._steps += 1
        self._average()
        return metrics

    def state(self) -> LearnerState:
        """See :meth:`ehm.backends.base.Learner.state`."""
        optimizer = self._training.state()
        if self._config.model.drop_path:
            optimizer[STEP] = np.array(self._steps, np.int64)
        if self._ema is not None:
            optimizer = with_average(optimizer, to_arrays(self._ema))
        return LearnerState(to_arrays(self.model), optimizer)

    def load(self, state: LearnerState) -> None:
        """See :meth:`ehm.backends.base.Learner.load`."""
        load_arrays(self.model, state.model)
        optimizer, average = split_average(state.optimizer)
        if self._ema is not None:
            load_arrays(self._ema, average)
        self._steps = int(optimizer.pop(STEP, np.array(0)))
        self._training.load(optimizer)

    def _build(self) -> Any:
        """The model as the seed starts it, or the weights that ``model.init`` names."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._config.run.seed)
            model = build_model(self._config, self._words.vocabulary if self._words else 0)
        self.notes = begin_with(model, self._config)
        return model.to(self._device)

    def _visual_tokens(self) -> VisualTokens:
        """What BEiT predicts."""
        config = self._config
        tokenizer = load_tokenizer(config.model.tokenizer, self._device)
        spec, data = config.spec, config.data
        return VisualTokens(tokenizer, spec.grid, spec.image_size, data.mean, data.std, self._device)

    def _split(self, mask: NDArray[np.bool_] | Tensor) -> tuple[Tensor, ...]:
        """Indices of what of the output grid is visible, of what is masked, and each token's place among both."""
        units = self._config.units
        factor = self._config.unit // self._config.spec.stride
        if isinstance(mask, Tensor):
            hidden = masked_count(self._config.masks.ratio, mask.shape[1]) * factor**2
            return hierarchy.split_mask(hierarchy.spread_mask(mask, units, factor), hidden)
        return tuple(upload(part, self._device) for part in split_mask(spread_mask(mask, units, factor)))

    def _apply_to_tokens(
        self, batch: TorchBatch, function: Callable[[Any, Tensor], Tensor], read: slice
    ) -> Iterator[Tensor]:
        """Apply ``function`` to the model and its patch tokens, piece by piece, and fill ``batch.embedded``.

        ``read`` selects the modules whose parameters ``function`` reads outside of their ``forward``: FSDP has to
        gather them. All pieces have to be consumed before the training step.
        """
        use_average = self._config.mask.source == "ema" and self._ema is not None
        model = self._ema if use_average else self.model
        evaluating = _without_drop_path if self._config.model.drop_path else nullcontext
        batch.embedded = []
        for rows in chunks(len(batch.images), self._config.optim.accumulate):
            pixels = self._pixels(batch.images[rows])
            with unsharded([model, *model.stack[read]]), self._training.autocast(), evaluating(model):
                with torch.set_grad_enabled(self._shares_embedding):
                    tokens = model.embed(pixels)
                batch.embedded.append((pixels, tokens if self._shares_embedding else None))
                with torch.no_grad():
                    for piece in tokens.detach().split(_PIECE):
                        yield function(model, piece)

    @torch.no_grad()
    def _average(self) -> None:
        """Exponential moving average of the parameters: ema = decay * ema + (1 - decay) * model."""
        if self._ema is None or self._config.optim.ema_decay is None:
            return
        torch._foreach_lerp_(
            list(self._ema.parameters()),
            [parameter.detach() for parameter in self.model.parameters()],
            1 - self._config.optim.ema_decay,
        )


def _download_all(pieces: Iterable[Tensor]) -> Iterator[NDArray[np.float32]]:
    """Start the download of all ``pieces``, and yield each as soon as it has arrived on the host."""
    waits = [download(piece) for piece in pieces]
    return (wait() for wait in waits)


@contextmanager
def _without_drop_path(model: Any) -> Iterator[None]:
    """``model`` in evaluation mode, in which nothing else of it differs."""
    training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(training)


def _to_units(values: Tensor, grid: tuple[int, int], units: tuple[int, int]) -> Tensor:
    """Mean over the tokens of each mask unit, along the last axis: (..., N) -> (..., U)."""
    if units == grid:
        return values
    cells = values.unflatten(-1, (units[0], grid[0] // units[0], units[1], grid[1] // units[1]))
    return cells.mean(dim=(-3, -1)).flatten(-2)
