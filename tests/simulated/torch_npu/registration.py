"""Puts the device and its kernels where torch looks for them."""

import functools
import sys

import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from torch_npu import npu, record, special
from torch_npu.kernel import aten, kernel

LEFT_TO_TORCH = {"_to_copy", "is_pinned", "_pin_memory"}
"""Composites of torch that cross devices; they end in ``empty_strided`` and ``copy_``."""

SPECIAL = {
    "_copy_from": special.copy_from,
    "resize_": special.resize_,
    "set_.source_Storage": special.set_storage,
    "set_.source_Storage_storage_offset": special.set_storage,
    "set_.source_Tensor": special.set_tensor,
    "scaled_dot_product_attention": special.scaled_dot_product_attention,
    "_scaled_dot_product_fused_attention_overrideable": special.attention_forward,
    "_scaled_dot_product_fused_attention_overrideable_backward": special.attention_backward,
}
_kept = []  # registrations live as long as these


def install():
    _setup_privateuseone_for_python_backend("npu", npu)
    sys.modules["torch.npu"] = npu
    _accelerator()
    _kernels()


def _accelerator():
    """torch asks hooks in C++ for these, which a backend in Python cannot supply."""
    for name in (
        "synchronize",
        "empty_cache",
        "memory_allocated",
        "max_memory_allocated",
        "memory_stats",
        "reset_peak_memory_stats",
    ):
        setattr(torch.accelerator, name, getattr(npu, name))
    torch.accelerator.current_device_index = npu.current_device
    torch.accelerator.set_device_index = npu.set_device
    torch.accelerator.get_memory_info = npu.mem_get_info


def _kernels():
    """One kernel each for the operators that torch-npu has, and the same kernel for whatever else arrives."""
    fallback = torch.library.Library("_", "IMPL")
    fallback.fallback(kernel, "PrivateUse1")
    library = torch.library.Library("aten", "IMPL", "PrivateUse1")
    gradients = torch.library.Library("aten", "IMPL", "AutogradPrivateUse1")
    _kept.extend([fallback, library, gradients])
    for name, function in SPECIAL.items():
        library.impl(name, function)
    # a composite of torch, which otherwise takes itself apart above the device
    gradients.impl("scaled_dot_product_attention", special.scaled_dot_product_attention)
    known = {name.removeprefix("aten::") for name in torch._C._dispatch_get_all_op_names()}
    for name in sorted((record.NATIVE & known) - SPECIAL.keys() - LEFT_TO_TORCH):
        if not torch._C._dispatch_has_kernel_for_dispatch_key("aten::" + name, "CompositeImplicitAutograd"):
            base, _, overload = name.partition(".")
            library.impl(name, functools.partial(kernel, getattr(getattr(aten, base), overload or "default")))
