"""The device's memory: storages labelled ``npu:0`` over CPU memory, and how much of it is in use."""

import torch
from torch._C import DispatchKey, DispatchKeySet

CPU = DispatchKeySet(DispatchKey.CPU)
SIZE = 64 << 30  # bytes that the device claims to have, as a 910B
set_ = torch.ops.aten.set_.source_Storage_storage_offset


class Usage:
    """Bytes in use, and the most there were."""

    current = 0
    peak = 0


class _Block:
    """Counts the bytes of one storage for as long as that lives."""

    def __init__(self, nbytes):
        self.nbytes = nbytes
        Usage.current += nbytes
        Usage.peak = max(Usage.peak, Usage.current)

    def __del__(self):
        Usage.current -= self.nbytes


def label(memory):
    """The device's storage over a CPU storage, which hangs on it and lives as long."""
    storage = torch._C._construct_storage_from_data_pointer(memory.data_ptr(), torch.device("npu", 0), memory.nbytes())
    storage._memory, storage._block = memory, _Block(memory.nbytes())
    return storage


def to_npu(tensor, storage=None):
    """A tensor of the device over the memory of a CPU tensor, in ``storage`` if that memory has its label already."""
    storage = label(tensor.untyped_storage()) if storage is None else storage
    empty = torch._C._acc.create_empty_tensor([0], tensor.dtype)
    return relayout(empty, storage, tensor)


def to_cpu(tensor):
    """A CPU tensor over the memory of the device's ``tensor``; nothing is copied."""
    memory = tensor.untyped_storage()._memory
    empty = torch.empty(0, dtype=tensor.dtype, device="cpu")
    return empty.set_(memory, tensor.storage_offset(), tensor.size(), tensor.stride())


def relayout(tensor, storage, like):
    """Let the device's ``tensor`` lie in ``storage`` as the tensor ``like`` lies in its own."""
    return set_.redispatch(CPU, tensor, storage, like.storage_offset(), like.size(), like.stride())
