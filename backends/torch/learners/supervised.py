"""The base of all task learners on a torch device: weights, pixels and the optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ehm.backends.base import Processes
from ehm.backends.resumable import ResumableTask
from ehm.backends.torch.engine.distributed import is_sharded
from ehm.backends.torch.engine.optim import create_lars, make_param_groups
from ehm.backends.torch.engine.placement import copy_model, place_model
from ehm.backends.torch.engine.step import Training
from ehm.backends.torch.engine.tensors import Pixels
from ehm.backends.torch.learners.stepped import SteppedLearner
from ehm.backends.torch.models.pyramid import find_nested_layers
from ehm.backends.torch.models.tuning import restrict_learning
from ehm.backends.torch.models.vit import find_layers
from ehm.config import TaskConfig
from ehm.config.data import refuse_other_images
from ehm.config.inputs import describe_changed_inputs
from ehm.errors import BackendError
from ehm.models.weights import LoadedModel

__all__ = ["SupervisedLearner", "create_optimizer"]


class SupervisedLearner(ResumableTask, SteppedLearner):
    """Implements :class:`ehm.backends.base.TaskLearner`.

    ``model`` is the torch module: the model of ``loaded``, or one that has it as its ``encoder`` somewhere inside.
    ``head`` is the part of it that is trained, if it is not trained as a whole, on ``parts`` of a batch one after the
    other: on the whole batch at once if left out. All layers of the encoder learn at ``encoder_rate`` of the rate.
    ``convolves`` is that of :func:`place_model`.

    With ``optim.ema_decay`` a moving average of the weights is kept. Raises BackendError for an average of parameters
    that are shared out to processes.
    """

    def __init__(
        self,
        model: nn.Module,
        loaded: LoadedModel,
        config: TaskConfig,
        device: torch.device,
        processes: Processes,
        head: nn.Module | None = None,
        parts: int | None = None,
        encoder_rate: float = 1.0,
        convolves: bool = False,
    ) -> None:
        tuning = restrict_learning(model, loaded.model, config.model.freeze, config.lora, config.run.seed)
        # FSDP takes no parameters in another order of memory
        place_model(model, device, convolves and not is_sharded(config.run.parallel, processes))
        self.image_size = loaded.image_size
        self.architecture: Mapping[str, Any] = loaded.architecture
        self.notes = loaded.notes
        refuse_other_images(config.task, config.model.init, loaded.inputs.pixels)
        self.inputs = config.data.complete_inputs(loaded.inputs)
        if self.notes:  # without weights, there is nothing to differ from
            self.notes += describe_changed_inputs(self.inputs, loaded.inputs)
        self.notes += tuning
        average = None
        if config.optim.ema_decay is not None:
            if is_sharded(config.run.parallel, processes):
                raise BackendError("optim.ema_decay: a task keeps no average with run.parallel fsdp; take ddp")
            average = copy_model(model).eval().requires_grad_(False)
        training = Training(
            model,
            lambda fused: create_optimizer(model, loaded.model, config, fused, encoder_rate),
            config.optim,
            config.run,
            device,
            processes,
            head,
            parts,
        )
        self._pixels = Pixels(device, self.inputs.mean, self.inputs.std, self.inputs.pixels.white)
        super().__init__(model, training, device, processes, config.run.seed)
        self._average = average

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """See :meth:`ehm.backends.base.TaskLearner.update_average`: average = decay * average + (1 - decay) * model."""
        own = self.model.state_dict()
        pairs = [(value, own[name]) for name, value in self._average.state_dict().items()]
        moving = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([average for average, _ in moving], [value for _, value in moving], 1 - decay)
        for average, value in pairs:
            if not average.is_floating_point():  # the number of batches that a batch norm has seen
                average.copy_(value)


def create_optimizer(
    model: nn.Module, encoder: Any, config: TaskConfig, fused: bool | None, encoder_rate: float = 1.0
) -> Optimizer:
    """Create the optimiser that ``config`` names; its rates fall from layer to layer of ``encoder`` (``layer_decay``).

    The encoder is ``model`` or a part of it; all of its layers have ``encoder_rate`` of the rate besides.
    """
    prefix = ""
    for name, module in model.named_modules():
        if module is encoder and name:
            prefix = f"{name}."
    undecayed = set()
    if hasattr(encoder, "no_weight_decay"):  # not every network of timm's has it
        undecayed = {f"{prefix}{name}" for name in encoder.no_weight_decay()}
    layers = None
    if config.layer_decay < 1 or encoder_rate != 1:
        layers = find_nested_layers(model) if prefix else find_layers(model)
    groups = make_param_groups(model.named_parameters(), undecayed, config.layer_decay, layers, encoder_rate)
    if config.optimizer == "lars":
        return create_lars(groups, config.optim.lr)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.optim.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=config.optim.lr, betas=config.optim.betas, fused=fused)
