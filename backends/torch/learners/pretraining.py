"""A masked image model in pretraining on one torch device: the similarity pass, the training step, its state.

Shapes: B images of H x W pixels, N output tokens of the encoder, U mask units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, SupportsFloat, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ehm.backends.base import ALONE, Processes, Reconstruction, StepExamination
from ehm.backends.common import make_step_seed, split_batch
from ehm.backends.resumable import ResumableLearner
from ehm.backends.torch.diagnosis.examination import examine_step
from ehm.backends.torch.engine import hierarchy
from ehm.backends.torch.engine.devices import choose_dtype
from ehm.backends.torch.engine.distributed import (
    gather_parameters,
    is_sharded,
    mean_over_processes,
    shard_again,
    wrap_model,
)
from ehm.backends.torch.engine.optim import make_param_groups
from ehm.backends.torch.engine.placement import place_model
from ehm.backends.torch.engine.seeds import seed_random_numbers, seed_weights
from ehm.backends.torch.engine.step import Training, compile_methods, recompute_activations
from ehm.backends.torch.engine.tensors import Pixels
from ehm.backends.torch.engine.transfers import start_download, start_upload, upload_array
from ehm.backends.torch.models.adapters import load_merged, load_updates, merge_arrays, take_updates
from ehm.backends.torch.models.attention import cosine_similarity
from ehm.backends.torch.models.loading import load_initial_weights
from ehm.backends.torch.models.tuning import restrict_learning
from ehm.backends.torch.models.vit import find_layers
from ehm.backends.torch.objectives import create_objective
from ehm.config import TrainConfig
from ehm.config.objectives import OBJECTIVES
from ehm.masking import BatchMasks, draw_channel_factors, split_mask, spread_mask
from ehm.masking.masker import STATIC_MASKINGS
from ehm.masking.static import count_masked
from ehm.models.weights import Weights

__all__ = ["TorchLearner", "count_parts"]

_PIECE = 64
"""Images whose similarity is computed and sent to the host together."""
_SMALLEST_PART = 128
"""Images that keep an accelerator busy: a batch is not split into smaller parts than the configuration says."""
_PASSES_FOR_MASKS = ("compute_similarity", "compute_features", "compute_saliency")
"""Methods of a model that masks are made of; a run calls one of them at most."""

T = TypeVar("T")


def count_parts(config: TrainConfig, device: torch.device, processes: Processes = ALONE) -> int:
    """Return the number of parts in which a step passes through ``device``: ``optim.accumulate``, or two at least.

    An accelerator would wait for the last masks of a batch that goes through it as a whole. It trains on the first of
    two parts while the host makes the masks of the second. A CPU does the one after the other anyhow.
    """
    parts = config.optim.accumulate
    makes_masks_of_images = config.masking not in STATIC_MASKINGS and config.mask.build != "device"
    images = config.optim.batch_size // processes.size
    if device.type != "cpu" and makes_masks_of_images and images >= 2 * _SMALLEST_PART:
        return max(2, parts)
    return parts


class TorchBatch:
    """Implements :class:`ehm.backends.base.PreparedBatch` and :class:`ehm.backends.base.MasksOnDevice`.

    The images travel to the device as soon as a batch is prepared. What the similarity or the saliency pass embeds is
    kept in ``embedded`` for the training step: the patch embedding runs once, with gradient (section V-E).
    """

    def __init__(
        self, learner: TorchLearner, images: NDArray[np.uint8], uploads: Iterable[Callable[[], Tensor]]
    ) -> None:
        self.images = images
        self.uploads = list(uploads)
        """For each chunk of the accumulation a function that returns its images on the device."""
        self.embedded: list[tuple[Tensor, Tensor | None]] = []
        """For each chunk of the accumulation its pixels, and its tokens if the training step can use them."""
        self._learner = learner

    def compute_similarity(self) -> Iterable[NDArray[np.float32]]:
        """See :meth:`ehm.backends.base.PreparedBatch.compute_similarity`. All of it is on its way when this returns."""
        waits = self._learner.compute_similarity(self, start_download)
        return (wait() for wait in waits)

    def compute_saliency(self) -> Iterable[NDArray[np.float32]]:
        """See :meth:`ehm.backends.base.PreparedBatch.compute_saliency`. All of it is on its way when this returns."""
        waits = self._learner.compute_saliency(self, start_download)
        return (wait() for wait in waits)

    def compute_evolved_masks(
        self, depth: float, ranks: NDArray[np.int32]
    ) -> tuple[Tensor, Mapping[str, SupportsFloat]]:
        """See :meth:`ehm.backends.base.MasksOnDevice.compute_evolved_masks`."""
        return self._learner.compute_evolved_masks(self, depth, ranks)


class TorchLearner(ResumableLearner):
    """Implements :class:`ehm.backends.base.Learner`."""

    takes_mask_pieces: Literal[True] = True
    _to_arrays = staticmethod(merge_arrays)
    _load_arrays = staticmethod(load_merged)
    _take_updates = staticmethod(take_updates)
    _load_updates = staticmethod(load_updates)

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        processes: Processes = ALONE,
        weights: Weights | None = None,
    ) -> None:
        self._config = config
        self._device = device
        self._processes = processes
        self._parts = count_parts(config, device, processes)
        self._has_dropout = config.model.drop_path > 0 or config.lora.dropout > 0
        self._draws_by_step = self._has_dropout or config.mask.channels > 0
        self._pixels = Pixels(device, config.data.mean, config.data.std, config.data.pixels.white)
        self._objective = create_objective(config, device)
        self.model = self._build_model(weights).train()
        if config.optim.ema_decay is not None:
            self._average = self._build_model(weights).eval().requires_grad_(False)
            if config.run.parallel == "fsdp":
                wrap_model(self._average, "fsdp", processes, device, choose_dtype(config.optim.dtype, device))
        self._objective.teacher = self._objective.build_teacher(self.model, self._average)
        if config.run.grad_checkpointing:
            recompute_activations(self.model, random=self._has_dropout)
        self._training = Training(
            self.model, self._create_optimizer, config.optim, config.run, device, processes, parts=self._parts
        )
        if config.run.compile and not is_sharded(config.run.parallel, processes):
            compile_methods(self._choose_mask_source(), _PASSES_FOR_MASKS, device)
        # FSDP reduces gradients in the modules' own passes: there the embedding runs again, inside of them
        shares_embedding = config.mask.source == "online" and not is_sharded(config.run.parallel, processes)
        # masks go by whole images, and the encoder sees some channels of them
        self._shares_embedding = shares_embedding and not config.mask.channels

    def prepare_batch(self, images: NDArray[np.uint8]) -> TorchBatch:
        """See :meth:`ehm.backends.base.Learner.prepare_batch`."""
        parts = split_batch(len(images), self._parts)
        return TorchBatch(self, images, [start_upload(images[rows], self._device) for rows in parts])

    def compute_similarity(self, batch: TorchBatch, send: Callable[[Tensor], T]) -> list[T]:
        """Compute the similarities (b, U, U) of the mask units of ``batch`` piece by piece, and ``send`` each piece.

        The tokens stay in ``batch.embedded``.
        """
        blocks = self._config.mask.blocks
        pool = partial(_mean_over_units, grid=self._config.spec.grid, units=self._config.units)

        def from_attention(model: Any, tokens: Tensor) -> Tensor:
            similarity: Tensor = model.compute_similarity(tokens, blocks)
            return pool(pool(similarity).transpose(1, 2))

        def from_features(model: Any, tokens: Tensor) -> Tensor:
            features: Tensor = model.compute_features(tokens, blocks)
            return cosine_similarity(pool(features.transpose(1, 2)).transpose(1, 2))

        function = from_attention if self._config.mask.similarity == "attention" else from_features
        return self._apply_to_tokens(batch, function, slice(blocks), send)

    def compute_saliency(self, batch: TorchBatch, send: Callable[[Tensor], T]) -> list[T]:
        """Compute the saliencies (b, U) of the mask units of ``batch`` piece by piece, and ``send`` each piece.

        The tokens stay in ``batch.embedded``.
        """
        pool = partial(_mean_over_units, grid=self._config.spec.grid, units=self._config.units)

        def compute(model: Any, tokens: Tensor) -> Tensor:
            return pool(model.compute_saliency(tokens))

        return self._apply_to_tokens(batch, compute, slice(-1, None), send)

    @torch.no_grad()
    def compute_evolved_masks(
        self, batch: TorchBatch, depth: float, ranks: NDArray[np.int32]
    ) -> tuple[Tensor, Mapping[str, SupportsFloat]]:
        """Build hierarchies and masks of ``batch`` on the device; see :class:`ehm.backends.base.MasksOnDevice`."""
        similarity = torch.cat(self.compute_similarity(batch, _keep_on_device))
        if self._config.mask.balance == "sinkhorn":
            similarity = hierarchy.balance(similarity)
        tree = hierarchy.build_hierarchy(similarity)
        ratio = self._config.masks.ratio
        views = upload_array(ranks, self._device).unbind(1)
        masks = []
        for view in views:
            masks.append(hierarchy.hierarchical_mask(tree, depth, ratio, view))
        # the masks of one image lie one after the other
        return torch.stack(masks, dim=1).flatten(0, 1), hierarchy.describe_parts(tree, depth)

    def train_step(
        self,
        batch: TorchBatch,
        mask: NDArray[np.bool_] | Tensor | BatchMasks,
        lr: float,
        weight_decay: float,
        ema_decay: float | None = None,
    ) -> Mapping[str, SupportsFloat]:
        """See :meth:`ehm.backends.base.Learner.train_step`."""
        images = batch.images
        views = len(mask) // len(images)
        uploads = iter(batch.uploads)
        config = self._config
        seed = (config.run.seed, self._steps, self._processes.rank)
        factors = draw_channel_factors(len(images), config.spec.channels, config.mask.channels, seed)
        shown = None if factors is None else upload_array(factors, self._device)
        figures: dict[str, Tensor] = {}

        def compute_loss(rows: slice) -> Tensor:
            # masks that are made only now are made first: their pass over the images embeds them
            visible, masked, restore = self._split_mask(mask[rows.start * views : rows.stop * views])
            take_images = next(uploads)
            if batch.embedded:
                # taken from the batch, since the step changes the weights that the tokens come from
                pixels, tokens = batch.embedded.pop(0)
            else:
                pixels, tokens = self._pixels.normalise(take_images()), None
            # outside of autocast: the objective decides in which type it computes its targets
            targets = self._objective.compute_targets(pixels)
            for name, value in self._objective.describe_targets(targets).items():
                part = value * ((rows.stop - rows.start) / len(images))
                figures[name] = figures[name] + part if name in figures else part
            with self._training.autocast():
                if shown is not None:
                    # 0 is the mean of a channel
                    tokens = self.model.embed(pixels * shown[rows, :, None, None])
                loss: Tensor = self._training.module(pixels, visible, masked, restore, tokens, **targets)
            return loss

        numbers = make_step_seed(self._config.run.seed, self._steps, self._processes.rank)
        # only drop path and dropout draw random numbers; without them, the generator's state need not be put back
        with seed_random_numbers(self._device, numbers) if self._has_dropout else nullcontext():
            metrics = self._training.step(len(images), compute_loss, lr, weight_decay)
        self._steps += 1
        if self._average is not None:
            self._update_average(ema_decay)
        means = {name: mean_over_processes(value, self._processes) for name, value in figures.items()}
        return {**metrics, **means}

    @torch.no_grad()
    def reconstruct_images(self, images: NDArray[np.uint8], mask: NDArray[np.bool_]) -> Reconstruction:
        """See :meth:`ehm.backends.base.Learner.reconstruct_images`."""
        visible, _, restore = self._split_mask(mask)
        pixels = self._pixels(images)
        with _without_dropping(self.model), self._training.autocast():
            reconstruction = self._objective.reconstruct(self.model, pixels, visible, restore)
        # without a backward pass, FSDP would keep some parameters whole
        shard_again(self.model)
        return reconstruction

    # not inference mode: what a model keeps for later passes, such as rotary angles, is used in training too
    @torch.no_grad()
    def compute_features(self, images: NDArray[np.uint8], average: bool = False) -> NDArray[np.float32]:
        """See :meth:`ehm.backends.base.Learner.compute_features`."""
        model = self._average if average else self.model
        with gather_parameters([model, *model.stack]), self._training.autocast(), _without_dropping(model):
            pooled = model.pool_features(model.embed(self._pixels(images)))
        features: NDArray[np.float32] = pooled.cpu().numpy()
        return features

    def examine_step(
        self,
        batch: TorchBatch,
        mask: NDArray[np.bool_],
        lr: float,
        weight_decay: float,
        ema_decay: float | None = None,
    ) -> StepExamination:
        """See :meth:`ehm.backends.base.Learner.examine_step`."""
        models = {"": self.model}
        if isinstance(self._objective.teacher, nn.Module):
            models["teacher."] = self._objective.teacher
        return examine_step(self, lambda: self.train_step(batch, mask, lr, weight_decay, ema_decay), models)

    def _build_model(self, weights: Weights | None) -> Any:
        """Build the model with the weights that the seed gives, or those that ``model.init`` names."""
        config = self._config
        with seed_weights(config.run.seed):
            model = self._objective.build_model()
        self.notes = load_initial_weights(model, config, weights)
        self.notes += restrict_learning(model, model, config.model.freeze, config.lora, config.run.seed)
        return place_model(model, self._device)

    def _create_optimizer(self, fused: bool | None) -> torch.optim.Optimizer:
        config = self._config
        undecayed = OBJECTIVES[config.objective].undecayed
        layers = None
        if config.layer_decay < 1:
            layers = find_layers(self.model)
        groups = make_param_groups(self.model.named_parameters(), undecayed, config.layer_decay, layers)
        optim = config.optim
        return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=fused)

    def _split_mask(self, mask: NDArray[np.bool_] | Tensor) -> tuple[Tensor, ...]:
        """Split masks of units into the indices of visible and of masked tokens, and each token's place among both."""
        units = self._config.units
        tokens_per_side = self._config.unit // self._config.spec.stride
        if isinstance(mask, Tensor):
            # counted here, because counting on the device would make the host wait for it
            hidden = count_masked(self._config.masks.ratio, mask.shape[1]) * tokens_per_side**2
            return hierarchy.split_mask(hierarchy.spread_mask(mask, units, tokens_per_side), hidden)
        parts = split_mask(spread_mask(mask, units, tokens_per_side))
        return tuple(upload_array(part, self._device) for part in parts)

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
        model = self._choose_mask_source()
        evaluating = _without_dropping if self._has_dropout else nullcontext
        sent = []
        batch.embedded = []
        for take_images in batch.uploads:
            pixels = self._pixels.normalise(take_images())
            with gather_parameters([model, *model.stack[read]]), self._training.autocast(), evaluating(model):
                with torch.set_grad_enabled(self._shares_embedding):
                    tokens = model.embed(pixels)
                batch.embedded.append((pixels, tokens if self._shares_embedding else None))
                with torch.no_grad():
                    for piece in tokens.detach().split(_PIECE):
                        # sent at once, so that the host builds trees of it while the device computes the next
                        sent.append(send(function(model, piece)))
        return sent

    def _choose_mask_source(self) -> Any:
        """Return the model whose similarity or saliency masks are made of."""
        sources = {"online": self.model, "ema": self._average, "teacher": self._objective.teacher}
        return sources[self._config.mask.source]

    @torch.no_grad()
    def _update_average(self, decay: float | None) -> None:
        """Exponential moving average of the parameters: ema = decay * ema + (1 - decay) * model."""
        if decay is None:
            decay = self._config.optim.last_ema_decay
        assert decay is not None  # no average is kept without one
        torch._foreach_lerp_(
            list(self._average.parameters()),
            [parameter.detach() for parameter in self.model.parameters()],
            1 - decay,
        )


def _keep_on_device(piece: Tensor) -> Tensor:
    return piece


@contextmanager
def _without_dropping(model: Any) -> Iterator[None]:
    """Put ``model`` in evaluation mode for a while; nothing but drop path and dropout differs in it."""
    training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(training)


def _mean_over_units(values: Tensor, grid: tuple[int, int], units: tuple[int, int]) -> Tensor:
    """Average over the tokens of each mask unit, along the last axis: (..., N) -> (..., U)."""
    if units == grid:
        return values
    cells = values.unflatten(-1, (units[0], grid[0] // units[0], units[1], grid[1] // units[1]))
    return cells.mean(dim=(-3, -1)).flatten(-2)
