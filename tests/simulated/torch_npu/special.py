"""Operators that the one kernel cannot run as they are."""

import torch

from ehm.backends.torch.diagnosis.recording import list_dtypes
from torch_npu import record
from torch_npu.kernel import aten, kernel
from torch_npu.storage import CPU, label, relayout, set_, to_cpu, to_npu


def copy_from(source, target, non_blocking=False):
    kernel(aten.copy_.default, target, source, non_blocking)
    return target


def resize_(self, size, *, memory_format=None):
    like = torch.empty(size, dtype=self.dtype, memory_format=memory_format or torch.contiguous_format)
    storage, needed = self.untyped_storage(), like.untyped_storage().nbytes()
    assert self.storage_offset() == 0, "the simulation resizes whole tensors only"
    if needed > storage.nbytes():
        like.view(-1)[: self.numel()].copy_(to_cpu(self).reshape(-1))
        storage = label(like.untyped_storage())
    return relayout(self, storage, like)


def set_storage(self, source, offset=0, size=None, stride=None):
    size = [source.nbytes() // self.element_size()] if size is None else size
    stride = stride if stride and len(stride) == len(size) else torch.empty(size, device="meta").stride()
    return set_.redispatch(CPU, self, source, offset, size, stride)


def set_tensor(self, source):
    return relayout(self, source.untyped_storage(), source)


def scaled_dot_product_attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False
):
    """One fused operator, as in torch-npu, wherever the CPU's fused kernel can stand in for it."""
    fused = query.dim() == 4 and not dropout_p and not enable_gqa and attn_mask is None
    if fused:
        operator = aten._scaled_dot_product_fused_attention_overrideable.default
        return operator(query, key, value, attn_mask, dropout_p, is_causal, False, scale=scale)[0]
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = query.new_zeros(attn_mask.shape).masked_fill_(attn_mask.logical_not(), float("-inf"))
    operator = aten._scaled_dot_product_attention_math.default
    return operator(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)[0]


def attention_forward(query, key, value, mask=None, dropout_p=0.0, is_causal=False, debug=False, *, scale=None):
    tensors = [query, key, value]
    record.note("scaled_dot_product_attention", list_dtypes(tensors))
    forward = aten._scaled_dot_product_flash_attention_for_cpu.default
    output, sums = forward(*map(to_cpu, tensors), dropout_p, is_causal, scale=scale)
    nothing = torch.empty(0, device="npu")
    seed = torch.empty((), dtype=torch.int64, device="npu")
    return to_npu(output), to_npu(sums), nothing, nothing, query.size(2), key.size(2), seed, seed, nothing


def attention_backward(grad, query, key, value, mask, wanted, output, sums, *rest, scale=None):
    tensors = [grad, query, key, value, output, sums]
    _, _, _, _, dropout_p, is_causal, _, _ = rest  # the others matter to ragged batches and dropout alone
    record.note("scaled_dot_product_attention", list_dtypes(tensors[:4]))
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    return *map(to_npu, backward(*map(to_cpu, tensors), dropout_p, is_causal, scale=scale)), None
