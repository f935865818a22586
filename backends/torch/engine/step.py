"""The parts of a training step around its loss: precision, accumulation, clipping, compilation and processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from shutil import which
from typing import Any, SupportsFloat

import numpy as np
import torch
from timm.models.beit import Block as BeitBlock
from timm.models.eva import EvaBlock
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from ehm.backends.base import Processes
from ehm.backends.common import SCALE, TRACKER, split_batch
from ehm.backends.torch.engine.devices import FACTS, autocast_to, choose_dtype
from ehm.backends.torch.engine.distributed import (
    gather_tensor,
    is_sharded,
    list_shards,
    mean_over_processes,
    shard_again,
    synchronise_gradients,
    wrap_model,
)
from ehm.backends.torch.engine.optim import copy_optimizer_arrays, load_optimizer_arrays, set_rates
from ehm.config import OptimConfig, RunConfig
from ehm.errors import BackendError
from ehm.storage.arrays import Arrays

__all__ = ["Training", "compile_methods", "recompute_activations", "set_deterministic", "without_dropping"]

_BLOCKS = (Block, BeitBlock, EvaBlock, SwinTransformerBlock)


class Training:
    """A model and its optimiser on one device; a loss has to call ``module``.

    ``optimizer`` creates the optimiser after the model has been sharded, if it is: fused (True), or in the form that
    torch takes on the device (None). If only the model's ``head`` is trained, ``module`` is the head, and a batch is
    not split; else it is split into ``parts`` (``optim.accumulate`` if left out). Raises BackendError for settings that
    the device does not have.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[[bool | None], Optimizer],
        optim: OptimConfig,
        run: RunConfig,
        device: torch.device,
        processes: Processes,
        head: nn.Module | None = None,
        parts: int | None = None,
    ) -> None:
        facts = FACTS[device.type]
        facts.prepare()
        self.dtype = choose_dtype(optim.dtype, device)
        self._model = model
        self._optim = optim
        self._device = device
        self._processes = processes
        scaled = self.dtype == torch.float16  # the one type whose range is too small for gradients
        if scaled and is_sharded(run.parallel, processes):
            raise BackendError("optim.dtype float16: not with run.parallel fsdp; bfloat16 needs no loss scaling")
        trained = model if head is None else head
        if parts is None:
            parts = optim.accumulate if head is None else 1
        self._parts = parts
        if run.compile:
            _compile(trained, device, is_sharded(run.parallel, processes))
        # in this order: sharding replaces the parameters that the optimiser is given
        self.module = wrap_model(trained, run.parallel, processes, device, self.dtype)
        can_fuse = facts.fused_adamw and (facts.fused_adamw_scales or not scaled)
        # with False instead of None, torch would loop over single tensors, and not take a few operators for all of them
        self.optimizer = optimizer(True if can_fuse else None)
        self._scaler = torch.amp.GradScaler(device.type, enabled=scaled)

    def autocast(self) -> torch.autocast:
        """Return a context in which matrix products are computed in the type of this run."""
        return autocast_to(self._device, self.dtype)

    def step(
        self, rows: int, loss: Callable[[slice], Tensor], lr: float, weight_decay: float, *, is_part: bool = False
    ) -> dict[str, SupportsFloat]:
        """Take one step on a batch of ``rows`` images; ``loss`` computes the mean loss of a slice of them.

        With ``is_part`` it computes the part of the batch's loss that a slice has: the parts add up to it. The batch is
        split into parts, whose gradients travel between processes once. The metrics
        ``loss`` and ``grad_norm``, the length of the gradient before it is clipped, stay on the device.
        """
        set_rates(self.optimizer, lr, weight_decay)
        self.optimizer.zero_grad(set_to_none=True)
        # summed on the device: reading a loss would make the host wait
        total = torch.zeros((), device=self._device)
        parts = list(split_batch(rows, self._parts))
        for part in parts:
            with synchronise_gradients(self.module, last=part is parts[-1]):
                value = loss(part)
                if not is_part:
                    # weighted by its size, as the last part may be shorter
                    value = value * ((part.stop - part.start) / rows)
                self._scaler.scale(value).backward()
            total += value.detach()
        # the norm, and its limit, are those of the true gradients; a scaler looks at all of them anyhow
        self._scaler.unscale_(self.optimizer)
        norm = self._measure_and_clip_gradients()
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return {"loss": mean_over_processes(total, self._processes), "grad_norm": norm}

    def _measure_and_clip_gradients(self) -> Tensor:
        """Return the length of the gradient of all parameters together, and clip it if ``optim.clip_grad`` says so."""
        gradients = [parameter.grad for parameter in self._model.parameters() if parameter.grad is not None]
        # of gradients that are shared out to processes, the norm is shared out too until it is gathered
        norm = nn.utils.get_total_norm(gradients)
        if self._optim.clip_grad is not None:
            nn.utils.clip_grads_with_norm_(self._model.parameters(), self._optim.clip_grad, norm)
        return gather_tensor(norm)

    def state(self) -> Arrays:
        """Return the optimiser's arrays, and the loss scale if there is one."""
        # FSDP keeps some parameters whole after a forward pass, and the optimiser's state is that of the sharded ones
        shard_again(self._model)
        arrays = copy_optimizer_arrays(self.optimizer, self._model.named_parameters())
        if self._scaler.is_enabled():
            scaler = self._scaler.state_dict()
            arrays[SCALE] = np.array(scaler["scale"], np.float32)
            arrays[TRACKER] = np.array(scaler["_growth_tracker"], np.int32)
        return arrays

    def load(self, arrays: Arrays) -> None:
        """Continue from the arrays of :meth:`state`, whatever type that run computed in.

        Raises CheckpointError if they do not fit.
        """
        moments = dict(arrays)
        scale = moments.pop(SCALE, None)
        tracker = moments.pop(TRACKER, None)
        load_optimizer_arrays(self.optimizer, self._model.named_parameters(), moments)
        if scale is not None and tracker is not None and self._scaler.is_enabled():
            scaler: dict[str, Any] = {**self._scaler.state_dict(), "scale": float(scale)}
            self._scaler.load_state_dict({**scaler, "_growth_tracker": int(tracker)})


def _compile(model: nn.Module, device: torch.device, sharded: bool) -> None:
    """Let torch compile ``model``, which is wrapped for several processes afterwards.

    Raises BackendError if that is not possible for ``device``.
    """
    options: dict[str, Any] = {"backend": find_compiler(device), "dynamic": False}
    if not sharded:
        # Inside DDP, torch compiles a piece for each bucket of gradients, which travels while earlier layers compute
        # theirs. If DDP itself were compiled, torch 2.14 would compile nothing.
        model.compile(**options)
        return
    # each block by itself: torch compiles no loop in which FSDP gathers the parameters of a block
    for block in list_shards(model):
        block.forward = torch.compile(block.forward, **options)


def compile_methods(model: nn.Module, names: Iterable[str], device: torch.device) -> None:
    """Let torch compile those methods ``names`` of ``model`` that it has; they are called beside its ``forward``."""
    for name in names:
        method = getattr(model, name, None)
        if method is not None:
            setattr(model, name, torch.compile(method, backend=find_compiler(device), dynamic=False))


def find_compiler(device: torch.device) -> str:
    """Return torch's name of the compiler for ``device``; raises BackendError if there is none to rely on."""
    compiler = FACTS[device.type].compiler
    if compiler is None:
        raise BackendError(f"run.compile: there is no compiler to rely on for {device.type}; leave it false")
    if compiler == "inductor" and not any(map(which, ("g++", "clang++"))):
        raise BackendError("run.compile: torch needs a C++ compiler, g++ or clang++, and finds none")
    return compiler


def recompute_activations(model: nn.Module, random: bool = False) -> None:
    """Keep no activations inside Transformer blocks: the backward pass computes them again (Chen et al., 2016).

    ``random`` says whether the blocks draw random numbers, which have to be the same the second time.
    """
    for module in model.modules():
        if isinstance(module, _BLOCKS):
            block: Any = module
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=random)


@contextmanager
def without_dropping(model: Any) -> Iterator[None]:
    """Put ``model`` in evaluation mode for a while; nothing but drop path and dropout differs in it."""
    training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(training)


def set_deterministic(wanted: bool) -> None:
    """Let only deterministic kernels run in this process if ``wanted``, else any; before the first use of a device.

    An operator that has no deterministic kernel then raises; torch-npu does not, but asks CANN for deterministic ones,
    and only by the first setting in a thread. Collectives are the concern of :func:`ehm.backends.get`.
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        safeguard: Any = torch.utils.deterministic
        safeguard.fill_uninitialized_memory = False  # torch's default, which finds bugs at a cost
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = False
