"""``torch.autocast("npu")``: what computes in the lower type, and what in float32 (torch's lists for CUDA, in part)."""

import functools

import torch
from torch._C import DispatchKey, DispatchKeySet

_LOWER = """
conv1d conv2d conv3d conv_transpose2d.input convolution matmul addmm mm bmm baddbmm addbmm mv linear einsum
prelu scaled_dot_product_attention
"""
_FLOAT32 = """
acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar
pow.Tensor_Tensor pow.Scalar softplus layer_norm native_layer_norm group_norm cosine_similarity nll_loss kl_div
l1_loss smooth_l1_loss huber_loss mse_loss binary_cross_entropy_with_logits cdist logsumexp softmax.int
log_softmax.int cumprod cumsum prod sum sum.dim_IntList norm.Scalar norm.ScalarOpt_dim upsample_bicubic2d.vec
"""
_PROMOTE = """
addcdiv addcmul atan2 bilinear dot grid_sampler index_put tensordot scatter_add cat stack index_copy
"""

_KEYS = DispatchKeySet(DispatchKey.AutocastPrivateUse1)
_kept = []
_casts = {}  # identity of a parameter -> (parameter, its version, the copy): cast once in a forward pass


def _lower(values):
    return torch.get_autocast_dtype("npu")


def _float32(values):
    return torch.float32


def _widest(values):
    return torch.float32 if any(tensor.dtype == torch.float32 for tensor in _tensors(values)) else _lower(values)


def _tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for element in value:
            yield from _tensors(element)


def _cast(value, dtype):
    if isinstance(value, (list, tuple)):
        return [_cast(element, dtype) for element in value]
    if not isinstance(value, torch.Tensor) or value.device.type != "npu" or not value.is_floating_point():
        return value
    if value.dtype in (dtype, torch.float64):
        return value
    if not (value.is_leaf and value.requires_grad and torch.is_autocast_cache_enabled() and torch.is_grad_enabled()):
        return value.to(dtype)
    kept = _casts.get(id(value))
    if kept is None or kept[0] is not value or kept[1] != value._version or kept[2].dtype != dtype:
        kept = _casts[id(value)] = value, value._version, value.to(dtype)
    return kept[2]


def _wrapper(choose, operator, *args, **kwargs):
    with torch._C._ExcludeDispatchKeyGuard(_KEYS):
        dtype = choose(args)
        return operator(*[_cast(value, dtype) for value in args], **{k: _cast(v, dtype) for k, v in kwargs.items()})


def install():
    fallback = torch.library.Library("_", "IMPL")
    fallback.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    library = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
    _kept.extend([fallback, library])
    for choose, names in ((_lower, _LOWER), (_float32, _FLOAT32), (_widest, _PROMOTE)):
        for name in names.split():
            base, _, overload = name.partition(".")
            operator = getattr(getattr(torch.ops.aten, base), overload or "default")
            library.impl(name, functools.partial(_wrapper, choose, operator))
    clear = torch.clear_autocast_cache

    def clear_both():
        _casts.clear()
        clear()

    torch.clear_autocast_cache = clear_both
