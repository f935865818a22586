"""Entry points of torch that a backend in Python has to replace: pinned memory, streams, how a tensor is printed."""

import torch


def pin_memory(self, device=None):
    """Pinned memory is a mark on the storage."""
    if not self.is_cpu:
        raise RuntimeError(f"cannot pin '{self.type()}': only dense CPU tensors can be pinned")
    if is_pinned(self):
        return self
    pinned = self.clone(memory_format=torch.preserve_format)
    pinned.untyped_storage()._pinned = True
    return pinned


def is_pinned(self, device=None):
    return self.is_cpu and getattr(self.untyped_storage(), "_pinned", False)


_empty, _repr, _resize = torch.empty, torch.Tensor.__repr__, torch.UntypedStorage.resize_
_record_stream = torch.Tensor.record_stream


def empty(*size, pin_memory=False, **options):
    tensor = _empty(*size, **options)
    if pin_memory:
        tensor.untyped_storage()._pinned = True
    return tensor


def show(self, *, tensor_contents=None):
    """torch formats numbers in float64, on the tensor's own device."""
    if self.device.type != "npu":
        return _repr(self, tensor_contents=tensor_contents)
    return f"{self.detach().cpu()!r}"[:-1] + f", device='{self.device}')"


def resize_(self, size):
    """FSDP frees and fills the same storages again; here they keep their memory."""
    return self if self.device.type == "npu" else _resize(self, size)


def record_stream(self, stream):
    """torch takes no stream that is made in Python; here there is nothing to record."""
    if self.device.type != "npu":
        _record_stream(self, stream)


def install():
    torch.Tensor.record_stream = record_stream
    torch.UntypedStorage.resize_ = resize_
    torch.empty, torch.Tensor.__repr__ = empty, show
    torch.Tensor.pin_memory, torch.Tensor.is_pinned = pin_memory, is_pinned
