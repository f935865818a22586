"""A masked image model in pretraining on one torch device: the training step, its state, and looks at the model.

Shapes: B images of H x W pixels, N output tokens of the encoder, U mask units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, Literal, SupportsFloat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ehm.backends.base import ALONE, Processes, Reconstruction, StepExamination
from ehm.backends.common import make_step_seed, split_batch
from ehm.backends.resumable import ResumableLearner
from ehm.backends.torch.diagnosis.examination import examine_step
from ehm.backends.torch.engine import masks
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
from ehm.backends.torch.engine.step import Training, compile_methods, recompute_activations, without_dropping
from ehm.backends.torch.engine.tensors import Pixels
from ehm.backends.torch.engine.transfers import start_upload, upload_array
from ehm.backends.torch.learners.mask_source import MaskSource, TorchBatch
from ehm.backends.torch.models.adapters import load_merged, load_updates, merge_arrays, take_updates
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

_SMALLEST_PART = 128
"""Images that keep an accelerator busy: a batch is not split into smaller parts than the configuration says."""
_PASSES_FOR_MASKS = ("compute_similarity", "compute_features", "compute_saliency")
"""Methods of a model that masks are made of; a run calls one of them at most."""


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
        self._mask_source = self._build_mask_source()

    def prepare_batch(self, images: NDArray[np.uint8]) -> TorchBatch:
        """See :meth:`ehm.backends.base.Learner.prepare_batch`."""
        parts = split_batch(len(images), self._parts)
        return TorchBatch(self._mask_source, images, [start_upload(images[rows], self._device) for rows in parts])

    def train_step(
        self,
        batch: TorchBatch,
        mask: NDArray[np.bool_] | Tensor | BatchMasks,
        lr: float,
        weight_decay: float,
        ema_decay: float | None = None,
    ) -> Mapping[str, SupportsFloat]:
        """See :meth:`ehm.backends.base.Learner.train_step`."""
        figures: dict[str, Tensor] = {}
        compute_loss = self._build_loss(batch, mask, figures)
        numbers = make_step_seed(self._config.run.seed, self._steps, self._processes.rank)
        # only drop path and dropout draw random numbers; without them, the generator's state need not be put back
        with seed_random_numbers(self._device, numbers) if self._has_dropout else nullcontext():
            metrics = self._training.step(len(batch.images), compute_loss, lr, weight_decay)
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
        with without_dropping(self.model), self._training.autocast():
            reconstruction = self._objective.reconstruct(self.model, pixels, visible, restore)
        # without a backward pass, FSDP would keep some parameters whole
        shard_again(self.model)
        return reconstruction

    # not inference mode: what a model keeps for later passes, such as rotary angles, is used in training too
    @torch.no_grad()
    def compute_features(self, images: NDArray[np.uint8], average: bool = False) -> NDArray[np.float32]:
        """See :meth:`ehm.backends.base.Learner.compute_features`."""
        model = self._average if average else self.model
        with gather_parameters([model, *model.stack]), self._training.autocast(), without_dropping(model):
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

    def _build_loss(
        self, batch: TorchBatch, mask: NDArray[np.bool_] | Tensor | BatchMasks, figures: dict[str, Tensor]
    ) -> Callable[[slice], Tensor]:
        """Return a function that computes the mean loss of a slice of the batch; slices are taken in order, each once.

        It adds the figures that describe the slice's targets, by its share of the batch, to ``figures``.
        """
        images = batch.images
        views = len(mask) // len(images)
        uploads = iter(batch.uploads)
        config = self._config
        seed = (config.run.seed, self._steps, self._processes.rank)
        factors = draw_channel_factors(len(images), config.spec.channels, config.mask.channels, seed)
        shown = None if factors is None else upload_array(factors, self._device)

        def compute_loss(rows: slice) -> Tensor:
            # masks that are made only now are made first: their pass over the images embeds them
            visible, masked, restore = self._split_mask(mask[rows.start * views : rows.stop * views])
            take_images = next(uploads)
            if batch.embedded:
                # taken from the batch, since the step changes the weights that the tokens come from
                pixels, tokens = batch.embedded.pop(0)
            else:
                pixels = self._pixels.normalise(take_images())
                tokens = None
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

        return compute_loss

    def _build_mask_source(self) -> MaskSource:
        """Return the passes over images that masks go by, on the model that ``mask.source`` names."""
        config = self._config
        models = {"online": self.model, "ema": self._average, "teacher": self._objective.teacher}
        model = models[config.mask.source]
        sharded = is_sharded(config.run.parallel, self._processes)
        if config.run.compile and not sharded:
            compile_methods(model, _PASSES_FOR_MASKS, self._device)
        # FSDP reduces gradients in the modules' own passes: there the embedding runs again, inside of them. And masks
        # go by whole images, of which the encoder sees some channels with mask.channels.
        shares_embedding = config.mask.source == "online" and not sharded and not config.mask.channels
        return MaskSource(config, model, self._pixels, self._training.autocast, shares_embedding, self._has_dropout)

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
            return masks.split_mask(masks.spread_mask(mask, units, tokens_per_side), hidden)
        parts = split_mask(spread_mask(mask, units, tokens_per_side))
        return tuple(upload_array(part, self._device) for part in parts)

    @torch.no_grad()
    def _update_average(self, decay: float | None) -> None:
        """Move the exponential average of the parameters: ema = decay * ema + (1 - decay) * model."""
        if decay is None:
            decay = self._config.optim.last_ema_decay
        assert decay is not None  # no average is kept without one
        torch._foreach_lerp_(
            list(self._average.parameters()),
            [parameter.detach() for parameter in self.model.parameters()],
            1 - decay,
        )
