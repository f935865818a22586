"""A masked image model in pretraining on one MindSpore target: the training step, its state, and looks at the model.

Shapes: B images of H x W pixels, N output tokens of the encoder, U mask units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, SupportsFloat

import numpy as np
from mindspore import Tensor
from numpy.typing import NDArray

from ehm.backends.base import ALONE, Processes, Reconstruction, StepExamination
from ehm.backends.common import is_decayed, make_step_seed
from ehm.backends.mindspore.engine.averaging import MovingAverage
from ehm.backends.mindspore.engine.devices import Target, choose_dtype
from ehm.backends.mindspore.engine.distributed import build_mean
from ehm.backends.mindspore.engine.examination import examine_step
from ehm.backends.mindspore.engine.graphs import BatchGraph, compile_graph
from ehm.backends.mindspore.engine.optim import AdamW
from ehm.backends.mindspore.engine.step import Training, draw_drop_path, refuse_unknown
from ehm.backends.mindspore.engine.tensors import Pixels
from ehm.backends.mindspore.learners.mask_source import MaskSource, MindsporeBatch
from ehm.backends.mindspore.models.adapters import (
    load_merged,
    load_updates,
    merge_arrays,
    seed_dropout,
    take_updates,
)
from ehm.backends.mindspore.models.blocks import recompute_activations
from ehm.backends.mindspore.models.loading import load_initial_weights
from ehm.backends.mindspore.models.tuning import find_layer, restrict_learning
from ehm.backends.mindspore.objectives import MindsporeObjective, create_objective
from ehm.backends.resumable import ResumableLearner
from ehm.config import TrainConfig
from ehm.config.objectives import OBJECTIVES
from ehm.errors import BackendError
from ehm.masking import BatchMasks, draw_channel_factors, split_mask, spread_mask
from ehm.models.weights import Weights

__all__ = ["MindsporeLearner"]


class MindsporeLearner(ResumableLearner):
    """Implements :class:`ehm.backends.base.Learner`. Raises BackendError for settings that this backend lacks."""

    takes_mask_pieces: Literal[True] = True
    _to_arrays = staticmethod(merge_arrays)
    _load_arrays = staticmethod(load_merged)
    _take_updates = staticmethod(take_updates)
    _load_updates = staticmethod(load_updates)

    def __init__(
        self,
        config: TrainConfig,
        target: Target,
        processes: Processes = ALONE,
        weights: Weights | None = None,
    ) -> None:
        if config.mask.build == "device":
            raise BackendError("mask.build device: the MindSpore backend builds trees on the host; use host or auto")
        refuse_unknown(config, processes)
        self._config = config
        self._rank = processes.rank
        has_dropout = config.model.drop_path > 0 or config.lora.dropout > 0
        self._draws_by_step = has_dropout or config.mask.channels > 0
        self._dtype = choose_dtype(config.optim.dtype, target)
        self._objective = create_objective(config)
        self.model = self._build_model(weights)
        if config.optim.ema_decay is not None:
            self._average = self._build_model(weights)
            self._average.update_parameters_name("ema.")  # names are unique within a graph
            self._moving_average = MovingAverage(self._average, self.model)
        self._objective.teacher = self._objective.build_teacher(self.model, self._average, self._dtype)
        if config.run.grad_checkpointing:
            recompute_activations(self.model)
        model = self.model
        compute_hidden_channels_loss = self._objective.compute_hidden_channels_loss
        pixels = Pixels(config.data.mean, config.data.std, config.data.pixels.white)
        self._pixels = pixels

        def compute_loss(images: Tensor, *rest: Tensor) -> Tensor:
            return model(pixels(images), *rest)

        def compute_loss_of_shown(images: Tensor, shown: Tensor, *rest: Tensor) -> Tensor:
            whole = pixels(images)
            # 0 is the mean of a channel
            seen = whole * shown.reshape((*shown.shape, 1, 1))
            return compute_hidden_channels_loss(model, whole, seen, *rest)

        self._loss = compute_loss_of_shown if config.mask.channels else compute_loss
        self._targets = None
        if self._objective.has_targets:
            self._targets = _build_targets(self._objective, pixels)
            self._describe_targets = compile_graph(self._objective.describe_targets)
            self._average_figures = compile_graph(build_mean(processes))
        self._training = Training(self._loss, self._create_optimizer(), config.optim, self._dtype, processes)
        source = {"online": model, "ema": self._average, "teacher": self._objective.teacher}[config.mask.source]
        self._mask_source = MaskSource(config, source, pixels)
        self._features = _build_pooled_features(model, pixels)
        if self._average is not None:
            self._average_features = _build_pooled_features(self._average, pixels)

    def prepare_batch(self, images: NDArray[np.uint8]) -> MindsporeBatch:
        """See :meth:`ehm.backends.base.Learner.prepare_batch`."""
        return MindsporeBatch(self._mask_source, images)

    def train_step(
        self,
        batch: MindsporeBatch,
        mask: NDArray[np.bool_] | BatchMasks,
        lr: float,
        weight_decay: float,
        ema_decay: float | None = None,
    ) -> Mapping[str, SupportsFloat]:
        """See :meth:`ehm.backends.base.Learner.train_step`."""
        images = batch.images
        config = self._config
        self.model.set_train()
        figures: dict[str, Any] = {}
        take_inputs = self._prepare_inputs(images, mask, figures)
        metrics = self._training.step(len(images), take_inputs, lr, weight_decay)
        self._steps += 1
        if self._average is not None:
            decay = ema_decay
            if decay is None:
                decay = config.optim.last_ema_decay
            assert decay is not None  # no average is kept without one
            self._moving_average.update(decay)
        if figures:
            figures = dict(zip(figures, self._average_figures(*figures.values()), strict=True))
        return {**metrics, **figures}

    def reconstruct_images(self, images: NDArray[np.uint8], mask: NDArray[np.bool_]) -> Reconstruction:
        """See :meth:`ehm.backends.base.Learner.reconstruct_images`."""
        visible, _, restore = self._split_mask(mask)
        self.model.set_train(False)
        # operator by operator: to compile a graph for a few pictures would take longer than to draw them
        pixels = self._pixels(Tensor(images))
        return self._objective.reconstruct(self.model, pixels, Tensor(visible), Tensor(restore))

    def compute_features(self, images: NDArray[np.uint8], average: bool = False) -> NDArray[np.float32]:
        """See :meth:`ehm.backends.base.Learner.compute_features`."""
        self.model.set_train(False)
        pool = self._average_features if average else self._features
        return pool(images)

    def examine_step(
        self,
        batch: MindsporeBatch,
        mask: NDArray[np.bool_],
        lr: float,
        weight_decay: float,
        ema_decay: float | None = None,
    ) -> StepExamination:
        """See :meth:`ehm.backends.base.Learner.examine_step`."""
        self.model.set_train()
        inputs = self._prepare_inputs(batch.images, mask, {})(slice(None))
        return examine_step(
            self.model,
            self._loss,
            inputs,
            self._training.parameters,
            lambda: self.train_step(batch, mask, lr, weight_decay, ema_decay),
        )

    def _prepare_inputs(
        self, images: NDArray[np.uint8], mask: NDArray[np.bool_] | BatchMasks, figures: dict[str, Any]
    ) -> Callable[[slice], tuple[Tensor, ...]]:
        """Return a function that gives the loss's inputs for a slice of the batch.

        It adds the figures that describe the slice's targets, by its share of the batch, to ``figures``.
        """
        config = self._config
        views = len(mask) // len(images)
        numbers = make_step_seed(config.run.seed, self._steps, self._rank)
        keep = draw_drop_path(config.model.drop_path, config.spec.blocks, len(mask), numbers)
        seed = (config.run.seed, self._steps, self._rank)
        shown = draw_channel_factors(len(images), config.spec.channels, config.mask.channels, seed)

        def take_inputs(rows: slice) -> tuple[Tensor, ...]:
            start, stop, _ = rows.indices(len(images))
            if config.lora.dropout:
                # drop path has the numbers without these
                seed_dropout(self.model, [*numbers, 2, start])
            masks = slice(start * views, stop * views)
            on_device = Tensor(images[rows])
            inputs = [on_device]
            if shown is not None:
                inputs.append(Tensor(shown[rows]))
            inputs += [Tensor(part) for part in self._split_mask(mask[masks])]
            if self._targets is not None:
                targets = self._targets(on_device)
                inputs += targets
                for name, value in self._describe_targets(targets).items():
                    figures[name] = figures.get(name, 0.0) + value * ((stop - start) / len(images))
            if keep is not None:
                inputs.append(Tensor(keep[:, masks]))
            return tuple(inputs)

        return take_inputs

    def _split_mask(self, mask: NDArray[np.bool_]) -> list[NDArray[np.int32]]:
        """Split masks of units into the indices of visible and of masked tokens, and each token's place among both."""
        tokens_per_side = self._config.unit // self._config.spec.stride
        parts = split_mask(spread_mask(mask, self._config.units, tokens_per_side))
        return [part.astype(np.int32) for part in parts]

    def _build_model(self, weights: Weights | None) -> Any:
        """Build the model with the weights that the seed gives, or those that ``model.init`` names."""
        model = self._objective.build_model(self._dtype)
        self.notes = load_initial_weights(model, self._config, weights)
        config = self._config
        self.notes += restrict_learning(model, config.spec, config.model.freeze, config.lora, config.run.seed)
        return model

    def _create_optimizer(self) -> AdamW:
        """Create the optimiser; layer i of L learns at ``layer_decay ** (L - i)`` of the rate (BEiT, MAE)."""
        config = self._config
        undecayed = OBJECTIVES[config.objective].undecayed
        last = config.spec.blocks + 1
        trained = {}
        scales = []
        decaying = []
        for name, value in self.model.parameters_and_names():
            if value.requires_grad:  # MAE's positions are fixed
                trained[name] = value
                scales.append(config.layer_decay ** (last - find_layer(name, config.spec)))
                decaying.append(is_decayed(name, value.ndim, undecayed))
        return AdamW(trained, scales, decaying, config.optim.betas)


def _build_targets(objective: MindsporeObjective, pixels: Pixels) -> Any:
    """Return a function of images (B, H, W, 3) that computes the targets of ``objective``, without gradient."""

    def compute(images: Tensor) -> tuple[Tensor, ...]:
        return objective.compute_targets(pixels(images))

    return compile_graph(compute)


def _build_pooled_features(model: Any, pixels: Pixels) -> BatchGraph:
    """Return a graph that pools the features of images (B, H, W, 3): -> (B, D)."""

    def pool(images: Tensor) -> Tensor:
        return model.pool_features(model.embed(pixels(images)))

    return BatchGraph(pool)
