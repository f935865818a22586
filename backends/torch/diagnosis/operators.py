"""The verdict on each operator that was recorded: whether an NPU runs it itself, and on which of its processors.

An NPU runs an operator itself if torch-npu's list has it, if it is structured and its ``out`` overload is in that list,
or if torch composes it of other operators, which are looked at themselves. Anything else is computed on the CPU, in the
middle of a step. Registration proves neither every type nor speed. :mod:`ehm.backends.torch.diagnosis.kernels` has the
facts and their sources.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, get_args

import torch

from ehm.backends.torch.diagnosis.kernels import (
    AI_CORE_TYPES,
    ONLY_ON_AICPU,
    PARTS_OF_WHOLE,
    UNDOCUMENTED,
    UNDOCUMENTED_TYPES,
    read_native_operators,
)
from ehm.backends.torch.diagnosis.recording import Call

__all__ = ["Kind", "OperatorRow", "Verdict", "classify_operator", "judge_calls", "read_native_operators"]

Kind = Literal["falls back", "no float64", "aicpu", "synchronises", "not documented", "native", "neutral"]
"""The verdicts, the worst first."""
_ORDER: tuple[Kind, ...] = get_args(Kind)

_WAITS = {"_local_scalar_dense", "equal", "masked_select", "nonzero", "unique_consecutive", "unique_dim", "_unique2"}
"""Native operators whose result has a size or a value that the host waits for."""
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
"""Operators that wait if an index is boolean."""
_COMPOSITE = ("CompositeImplicitAutograd", "CompositeExplicitAutograd")
_STRUCTURED = "CompositeExplicitAutogradNonFunctional"


@dataclass(frozen=True)
class Verdict:
    """The way in which an NPU runs an operator, and the reason."""

    kind: Kind
    reason: str


@dataclass(frozen=True)
class OperatorRow:
    """One operator, with the types of its tensors, as one place in the code calls it in some ``parts`` of ehm."""

    operator: str
    dtypes: tuple[str, ...]
    verdict: Kind
    site: str
    reason: str
    parts: tuple[str, ...] = ()


def classify_operator(name: str, dtypes: tuple[str, ...] = ()) -> Verdict:
    """Classify the operator ``name`` (``add.Tensor``; other namespaces as ``ns::name``) on tensors of ``dtypes``.

    Raises ValueError if torch has no such operator.
    """
    structure = _classify_structure(name)
    if structure.kind == "falls back":
        return structure
    if "float64" in dtypes:
        return Verdict("no float64", "an NPU computes in float32 without a word")
    base = name.partition(".")[0]
    on_aicpu = _find_reason_for_aicpu(base, dtypes)
    if on_aicpu is not None:
        return Verdict("aicpu", on_aicpu)
    if base in _WAITS or (base in _INDEXED and "bool" in (dtypes[1:] or dtypes)):
        return Verdict("synchronises", "the host waits for a value or a size")
    undocumented = UNDOCUMENTED_TYPES.get(base.removesuffix("_"))
    if undocumented in dtypes:
        return Verdict("not documented", f"{base} has a kernel for {undocumented}, which the documents leave out")
    if base in UNDOCUMENTED:
        return Verdict("not documented", "it has a kernel, and the documents say that it is not supported")
    return structure


def _find_reason_for_aicpu(base: str, dtypes: tuple[str, ...]) -> str | None:
    """Return why the operator runs on AICPU with ``dtypes``, the first of which is its first tensor's; else None."""
    if base in ONLY_ON_AICPU:
        return "it has no kernel for AI Core"
    types = AI_CORE_TYPES.get(base.removesuffix("_"))
    if types is None or not dtypes:
        return None
    # a sum is computed in the type of its result
    computed = dtypes[-1] if base.startswith("cumsum") else dtypes[0]
    if computed in types:
        return None
    return f"it has no kernel for AI Core in {computed}"


@cache
def _classify_structure(name: str) -> Verdict:
    """Classify an operator by torch-npu's list and by how torch composes it."""
    qualified = name if "::" in name else f"aten::{name}"
    # each device has another kernel of its own
    if name.startswith("_scaled_dot_product"):
        return Verdict("native", "one scaled_dot_product_attention there; with a bias of numbers, several operators")
    if name in read_native_operators():
        return Verdict("native", "in torch-npu's list")
    if name.startswith("npu::"):
        return Verdict("native", "torch-npu's own")
    whole = PARTS_OF_WHOLE.get(name.partition(".")[0])
    if whole is not None:
        return Verdict("native", f"a part of {whole}, which is in torch-npu's list")
    try:
        composite = any(torch._C._dispatch_has_kernel_for_dispatch_key(qualified, key) for key in _COMPOSITE)
        structured = torch._C._dispatch_has_kernel_for_dispatch_key(qualified, _STRUCTURED)
    except RuntimeError:
        raise ValueError(f"{name}: torch {torch.__version__} has no such operator") from None
    if composite:
        return Verdict("neutral", "composed of other operators")
    if structured:
        out = _find_out_overload(qualified)
        if out in read_native_operators():
            return Verdict("native", f"through {out}")
        if out is None or _classify_structure(out).kind == "neutral":
            return Verdict("neutral", "composed of other operators")
    return Verdict("falls back", "no kernel in torch-npu 2.14")


def _find_out_overload(qualified: str) -> str | None:
    """Find the overload of ``qualified`` that writes into arguments of the same types; None without one."""
    own = torch._C._get_schema(*_split_overload(qualified))
    base = qualified.removeprefix("aten::").partition(".")[0].removesuffix("_")
    own_arguments = [(value.name, str(value.type)) for value in own.arguments]
    packet = getattr(torch.ops.aten, base)
    for overload in packet.overloads():
        schema = getattr(packet, overload)._schema
        inputs = [(value.name, str(value.type)) for value in schema.arguments if not value.is_out]
        has_outputs = len(inputs) < len(schema.arguments)
        if has_outputs and inputs == own_arguments:
            return f"{base}.{overload}"
    return None


def _split_overload(qualified: str) -> tuple[str, str]:
    base, _, overload = qualified.partition(".")
    return base, overload


def judge_calls(calls: Iterable[Call], parts: Mapping[Call, Collection[str]] | None = None) -> list[OperatorRow]:
    """Return a row for each call that :func:`record_operators` saw, the worst first.

    ``parts`` are the names of the parts of ehm that each call was seen in.
    """
    rows: dict[OperatorRow, set[str]] = {}
    for call in calls:
        verdict = classify_operator(call.operator, call.dtypes)
        if call.waits and _ORDER.index(verdict.kind) > _ORDER.index("synchronises"):
            verdict = Verdict("synchronises", "a copy between host and device that the host waits for")
        row = OperatorRow(call.operator, call.dtypes, verdict.kind, call.site, verdict.reason)
        seen_in = rows.setdefault(row, set())
        if parts is not None:
            seen_in.update(parts[call])
    judged = [replace(row, parts=tuple(sorted(seen_in))) for row, seen_in in rows.items()]
    return sorted(judged, key=lambda row: (_ORDER.index(row.verdict), row.operator, row.site, row.dtypes))
