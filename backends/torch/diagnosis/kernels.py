"""Facts about the operators that torch-npu has on an Ascend 910B, as tables.

The kernels are those of the wheel torch-npu 2.14.0. AICPU and AI Core are told apart by the operators that op-plugin
(517f2e7d) calls, and by the lists of types for the architecture DAV_2201 in ops-math (c4193324) and ops-nn (e5c3fa93),
all of August 2026. What is documented is torch-npu's table of torch's API on the 910B, for torch 2.13.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

__all__ = [
    "AI_CORE_TYPES",
    "ONLY_ON_AICPU",
    "PARTS_OF_WHOLE",
    "UNDOCUMENTED",
    "UNDOCUMENTED_TYPES",
    "read_native_operators",
]

_FLOATS = frozenset({"float32", "float16", "bfloat16"})
_BITS = frozenset({"int16", "int32", "int64", "bool"})
_SCATTERED = _FLOATS | {"int8", "uint8", "int32", "bool"}

AI_CORE_TYPES: dict[str, frozenset[str]] = {
    "sort": _FLOATS,  # math/sort
    "argsort": _FLOATS,
    "topk": _FLOATS,  # math/topk
    "cumsum": _FLOATS | {"int32"},  # math/cumsum; in the type of the result
    "gather": _FLOATS | {"int8", "uint8", "int16", "int32", "int64"},  # index/gather_elements
    "scatter": _SCATTERED,  # index/scatter_elements_v2
    "scatter_add": _SCATTERED,
    "masked_fill": _FLOATS | {"bool", "int8", "int32"},  # conversion/masked_fill
    "constant_pad_nd": _FLOATS | {"bool", "int8", "int32"},  # conversion/pad_v3
    "flip": frozenset({"float32", "float16", "int16", "int32", "int64"}),  # index/reverse_v2
    "fmod": _FLOATS | {"int8", "uint8", "int32"},  # math/mod
    "bitwise_and": _BITS,  # math/bitwise_and, and logical_and for bool
    "bitwise_or": _BITS,
    "bitwise_xor": _BITS,
}
"""The types of the first tensor with which an operator runs on AI Core; with any other one it runs on AICPU."""
ONLY_ON_AICPU = frozenset(
    {
        "_cummax_helper",  # math/cummax
        "_linalg_svd",  # math/svd
        "_unique2",  # index/unique_with_counts_and_sorting
        "affine_grid_generator",  # math/affine_grid
        "bincount",  # math/bincount
        "cumprod",  # math/cumprod
        "fill_diagonal_",  # conversion/fill_diagonal_v2
        "linalg_qr",  # math/qr
        "searchsorted",  # math/search_sorted
        "triangular_solve",  # math/triangular_solve
    }
)
"""Operators that have no kernel for AI Core."""
UNDOCUMENTED_TYPES = dict.fromkeys(("argsort", "cumsum", "gather", "index_add", "sort"), "bfloat16")
"""Operators that order, move or add up values, and the type that the table leaves out for them. Others are not held to
its types: it leaves bfloat16 out for matmul, too."""
UNDOCUMENTED = frozenset({"adaptive_max_pool2d", "scatter_reduce", "std_mean", "unique_consecutive", "var_mean"})
"""Operators that have a kernel, though the table says that torch's function is not supported."""
PARTS_OF_WHOLE = {
    "_linalg_slogdet": "slogdet",
    "linalg_cholesky_ex": "linalg_cholesky",
    "linalg_inv_ex": "inverse",
    "mkldnn_rnn_layer": "lstm.input",
    "multilabel_margin_loss_forward": "multilabel_margin_loss",
}
"""Operators that other devices break an operator up into which torch-npu has as a whole, and that operator."""


@cache
def read_native_operators() -> frozenset[str]:
    """Return the operators of torch's ``aten`` with a kernel in torch-npu 2.14, overloads after a dot."""
    lines = Path(__file__).with_name("npu_operators.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))
