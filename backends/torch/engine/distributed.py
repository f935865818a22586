"""Processes that train one model together, as torchrun starts them: one for each device, one machine or several.

torchrun says who is who by environment variables (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR,
MASTER_PORT); the collectives are those of the device (nccl, hccl, gloo).
"""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from ehm.backends.base import ALONE, Processes
from ehm.backends.torch.engine.devices import FACTS, get_device_module
from ehm.errors import BackendError

__all__ = [
    "average_norms",
    "gather_parameters",
    "gather_tensor",
    "is_sharded",
    "join_processes",
    "list_shards",
    "mean_over_processes",
    "shard_again",
    "shard_like",
    "synchronise_gradients",
    "synchronise_norms",
    "wrap_model",
]

_PASSES = ("embed", "predict", "compute_similarity", "compute_features", "compute_saliency", "pool_features")
"""Methods of a model that are called beside ``forward``, and need its whole parameters too."""
_SYNC_BUFFERS = "broadcast_buffers"
"""DDP's argument that says whether buffers travel before every pass. Newer releases of torch warn at its old name."""
if "forward_sync_buffers" in signature(DistributedDataParallel.__init__).parameters:
    _SYNC_BUFFERS = "forward_sync_buffers"
_ENVIRONMENT = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class TorchProcesses:
    """Implements :class:`ehm.backends.base.Processes` on torch's default process group."""

    rank: int
    size: int
    local_size: int

    def gather_values(self, value: Any) -> list[Any]:
        """See :meth:`ehm.backends.base.Processes.gather_values`."""
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values


def join_processes(device: torch.device) -> tuple[torch.device, Processes]:
    """Join the processes that torchrun has started; return this one's own device and all processes.

    Without torchrun these are ``device`` and this process alone. Raises BackendError if the environment is incomplete
    or has more processes than there are devices.
    """
    world_size = os.environ.get("WORLD_SIZE", "1")
    if world_size == "1":
        if device.type != "cpu":
            # tensors say cuda:0 where a device says cuda, and the two would not be equal
            device = torch.device(device.type, device.index or 0)
            get_device_module(device).set_device(device)
        return device, ALONE
    missing = [name for name in _ENVIRONMENT if name not in os.environ]
    if missing:
        raise BackendError(
            f"WORLD_SIZE is {world_size}, but {', '.join(missing)} is not set: torchrun sets all of them"
        )
    if device.type != "cpu":
        device = _choose_own_device(device, int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        dist.init_process_group(FACTS[device.type].distributed)
        atexit.register(_leave_group)
    return device, TorchProcesses(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_WORLD_SIZE"]))


def _choose_own_device(device: torch.device, local_rank: int) -> torch.device:
    if device.index is not None:
        raise BackendError(
            f"--device {device}: torchrun gives every process a device of its own; use --device {device.type}"
        )
    count = torch.accelerator.device_count()
    if local_rank >= count:
        variable = FACTS[device.type].visible_devices
        hidden = ""
        if variable:
            hidden = f" ({variable} may hide others)"
        raise BackendError(
            f"--device {device.type}: process {local_rank} of this machine has none: it has {count}{hidden}"
        )
    own = torch.device(device.type, local_rank)
    get_device_module(own).set_device(own)
    return own


def _leave_group() -> None:
    """End the group while Python still runs."""
    if dist.is_initialized():
        dist.destroy_process_group()
        # A process was seen to abort after its work, in FSDP ("terminate called without an active exception"): modules
        # there refer to each other, and would otherwise live until the interpreter is torn down.
        gc.collect()


def mean_over_processes(value: Tensor, processes: Processes) -> Tensor:
    """Average ``value`` over all processes; it stays on the device."""
    if processes.size == 1:
        return value
    total = value.clone()  # the collective changes its argument
    dist.all_reduce(total)
    return total / processes.size


def is_sharded(parallel: Literal["ddp", "fsdp"], processes: Processes) -> bool:
    """Return whether parameters are spread over ``processes``."""
    return parallel == "fsdp" and processes.size > 1


def wrap_model(
    model: nn.Module,
    parallel: Literal["ddp", "fsdp"],
    processes: Processes,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Return ``model`` with a backward pass that averages gradients over all processes.

    ``ddp`` keeps a copy of everything in each process. ``fsdp`` (FSDP2) shards parameters, gradients and the
    optimiser's state, block by block, and changes ``model`` itself: make the optimiser afterwards. ``dtype`` is the
    type of the step's arithmetic.
    """
    if processes.size == 1:
        return model
    if parallel == "ddp":
        # Before every forward pass DDP would send the buffers of the first process, most of them constant tables of
        # indices. Only batch norms that see their own images alone change theirs differently in each process.
        has_own_norms = any(_is_own_norm(module) for module in model.modules())
        options: dict[str, Any] = {_SYNC_BUFFERS: has_own_norms}
        # gradients as views of what travels need no second copy
        return DistributedDataParallel(model, gradient_as_bucket_view=True, **options)
    _shard_model(model, processes, device, dtype)
    return model


def synchronise_norms(model: nn.Module, processes: Processes, device: torch.device) -> nn.Module:
    """Return ``model`` with batch norms that take their moments over all ``processes``, if the device can."""
    if processes.size == 1 or not FACTS[device.type].synchronises_norms:
        return model
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def _is_own_norm(module: nn.Module) -> bool:
    """Return whether ``module`` is a batch norm that takes its moments over the images of this process alone."""
    return _is_batch_norm(module) and not isinstance(module, nn.SyncBatchNorm)


def _is_batch_norm(module: nn.Module) -> bool:
    # the base class of all kinds of batch norm
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def average_norms(model: nn.Module, processes: Processes) -> None:
    """Average the running moments of batch norms that each process updates by itself.

    All processes evaluate the same model then, and it is the one that is saved.
    """
    if processes.size == 1:
        return
    moments: list[Tensor] = []
    for module in model.modules():
        if type(module) is nn.BatchNorm2d and module.running_mean is not None and module.running_var is not None:
            moments += [module.running_mean, module.running_var]
    if not moments:
        return
    # one collective for all of them
    averages = mean_over_processes(torch.cat(moments), processes).split(list(map(len, moments)))
    for value, average in zip(moments, averages, strict=True):
        value.copy_(average)


def list_shards(model: nn.Module) -> Iterator[Any]:
    """Yield the blocks of ``model`` that FSDP gathers one at a time."""
    for module in list(model.children()):
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            for block in module:
                # a single layer stays whole, because its parameters may be read beside its forward
                if any(block.children()):
                    yield block


def _shard_model(model: nn.Module, processes: Processes, device: torch.device, dtype: torch.dtype) -> None:
    mesh = init_device_mesh(device.type, (processes.size,))
    low = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in list_shards(model):
        # Matrix products would round the weights anyway. Running moments of batch norms are float32, and their kernels
        # take weights of that type.
        rounds = FACTS[device.type].shards_in_step_dtype and not any(map(_is_batch_norm, block.modules()))
        fully_shard(block, mesh=mesh, mp_policy=low if rounds else MixedPrecisionPolicy())
    # positions, last norms and heads stay float32: with them what blocks add to, as without FSDP
    fully_shard(model, mesh=mesh)
    # FSDP gathers parameters for forward alone, unless it knows of other methods
    for name in _PASSES:
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)


def synchronise_gradients(module: nn.Module, last: bool) -> AbstractContextManager[object]:
    """Return a context for the passes of one part of a batch: gradients travel once, after the ``last`` part."""
    if isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    return nullcontext()


@contextmanager
def gather_parameters(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Gather the parameters of FSDP's ``modules`` for a while, for code that reads them beside their ``forward``."""
    sharded = [module for module in modules if isinstance(module, FSDPModule)]
    for module in sharded:
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()


def shard_again(module: nn.Module) -> None:
    """Let go of FSDP's whole parameters: the parameters of ``module`` are the optimiser's own, sharded ones then."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def gather_tensor(value: Tensor) -> Tensor:
    """Return a whole parameter or state of the optimiser; if it is sharded, every process must call this."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def shard_like(value: Tensor, own: Tensor) -> Tensor:
    """Return ``value`` on the device of ``own``, and laid out there and sharded as ``own`` is."""
    value = value.to(own.device)
    if isinstance(own, DTensor):
        return distribute_tensor(value, own.device_mesh, own.placements)
    if value.stride() != own.stride():
        # fused optimisers go through a parameter and its moments in the order of memory
        return torch.empty_like(own, dtype=value.dtype).copy_(value)
    return value
