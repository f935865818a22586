"""The distributed backend ``hccl``: gloo, on the memory of the device's tensors."""

import torch
import torch.distributed as dist

from torch_npu.storage import to_cpu

_COLLECTIVES = """
allreduce allreduce_coalesced broadcast allgather _allgather_base allgather_into_tensor_coalesced
_reduce_scatter_base reduce_scatter_tensor_coalesced all_gather_single reduce_scatter_single scatter
"""
_NAMES = {
    "allgather_into_tensor_coalesced": "all_gather_single_coalesced",
    "reduce_scatter_tensor_coalesced": "reduce_scatter_single_coalesced",
}
"""The names of a group of processes, and those of a backend."""


def _down(value):
    if isinstance(value, torch.Tensor):
        if value.device.type != "npu":
            raise RuntimeError(f"No backend type associated with device type {value.device.type}")
        return to_cpu(value.detach())
    return [_down(element) for element in value] if isinstance(value, (list, tuple)) else value


def _tensors(args):
    first = args[0] if args else []
    return list(first) if isinstance(first, (list, tuple)) else [first]


def _done(tensors):
    """Work that is finished, with the tensors that DDP reads from it."""
    future = torch.futures.Future()
    future.set_result(tensors)
    return torch._C._distributed_c10d._create_work_from_future(future)


class HCCL(dist.ProcessGroup):
    """Collectives over gloo that take tensors of the device only."""

    def __init__(self, store, rank, size, timeout):
        super().__init__(rank, size)
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timeout)

    @property
    def _device_types(self):
        return [torch.device("npu")]  # object collectives stage their bytes there

    def getBackendName(self):  # noqa: N802
        return "hccl"

    def _set_group_name(self, name):
        self._name = name
        super()._set_group_name(name)

    @property
    def group_name(self):
        return self._name  # torch's own asks a backend in C++, which there is none of

    def barrier(self, opts=None):
        self._gloo.barrier().wait()
        return _done([])


def _forward(name):
    def collective(self, *args, **kwargs):
        call = getattr(self._gloo, _NAMES.get(name, name))
        call(*map(_down, args), **{key: _down(value) for key, value in kwargs.items()}).wait()
        return _done(_tensors(args))

    return collective


def install():
    for name in _COLLECTIVES.split():
        setattr(HCCL, name, _forward(name))
    dist.Backend.register_backend("hccl", HCCL, devices=["npu"])
