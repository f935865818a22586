"""Find the operators that a run needs, and whether torch-npu 2.14 has them for an Ascend NPU.

An operator runs natively if it is in torch-npu's list (``npu_operators.txt``), or if it is structured and its ``.out``
overload is in the list; it is device-neutral if torch composes it of others. Any other operator falls back to the CPU,
in the middle of a step. Registration proves neither every dtype nor speed. A dtype that is not documented, or does not
exist on the device, counts as falling back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch

import ehm.backends.torch
from ehm.backends.torch.diagnosis.recording import Call, record_operators
from ehm.config import FinetuneConfig, ProbeConfig, TokenizerConfig, TrainConfig
from ehm.masking import make_masker
from ehm.storage.checkpoint import save_checkpoint

__all__ = [
    "OperatorRow",
    "Verdict",
    "classify_operator",
    "judge_calls",
    "native_operators",
    "record_operators",
    "report_operators",
]

Kind = Literal["native", "neutral", "falls back", "synchronises"]

WAITS = {"_local_scalar_dense", "equal", "masked_select", "nonzero", "unique_consecutive", "unique_dim", "_unique2"}
"""Native operators whose result has a size or a value that the host waits for."""
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
"""Operators that wait if an index is boolean."""
UNDOCUMENTED = dict.fromkeys(("argsort", "cumsum", "cumsum_", "gather", "index_add", "index_add_", "sort"), "bfloat16")
"""Operators that order, move or add up values, and the dtype that torch-npu does not document for them on the 910B (its
list of torch's API, 2.13). Others are not held to that list: it leaves bfloat16 out for matmul, too."""
COMPOSITE = ("CompositeImplicitAutograd", "CompositeExplicitAutograd")
STRUCTURED = "CompositeExplicitAutogradNonFunctional"

_MASKINGS: tuple[tuple[str, Literal["host", "device"]], ...] = (
    ("random", "host"),
    ("attmask_high", "host"),
    ("evolved", "host"),
    ("evolved", "device"),
)
_VIT: dict[str, Any] = {"encoder": "vit_tiny", "patch_size": 8, "width": 24, "depth": 2, "heads": 2}
_SWIN: dict[str, Any] = {"encoder": "swin_tiny", "patch_size": 2, "width": 8, "depth": [2, 2, 1], "heads": [1, 2, 2]}
_OPTIM = {"batch_size": 4, "epochs": 1, "warmup_epochs": 0, "accumulate": 2, "clip_grad": 1.0}


@dataclass(frozen=True)
class Verdict:
    """The way in which an NPU runs an operator, and the reason."""

    kind: Kind
    reason: str


@dataclass(frozen=True)
class OperatorRow:
    """One operator, with the dtypes of its tensors, as one place in the code calls it."""

    operator: str
    dtypes: tuple[str, ...]
    verdict: Kind
    site: str
    reason: str


@cache
def native_operators() -> frozenset[str]:
    """Return the operators of torch's ``aten`` with a kernel in torch-npu 2.14, overloads after a dot."""
    lines = Path(__file__).with_name("npu_operators.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


def classify_operator(name: str, dtypes: tuple[str, ...] = ()) -> Verdict:
    """Classify the operator ``name`` (``add.Tensor``; other namespaces as ``ns::name``) on tensors of ``dtypes``.

    Raises ValueError if torch has no such operator.
    """
    base = name.partition(".")[0]
    if "float64" in dtypes:
        return Verdict("falls back", "an NPU has no float64: it computes in float32 without a word")
    for dtype in dtypes:
        if UNDOCUMENTED.get(base) == dtype:
            return Verdict("falls back", f"{base} is not documented for {dtype}; float32 is safe")
    if base in WAITS or (base in INDEXED and "bool" in (dtypes[1:] or dtypes)):
        return Verdict("synchronises", "the host waits for a value or a size")
    # each device has another kernel of its own
    if name.startswith("_scaled_dot_product"):
        return Verdict("native", "one scaled_dot_product_attention there")
    return _classify_structure(name)


@cache
def _classify_structure(name: str) -> Verdict:
    """Classify an operator by torch-npu's list and by how torch composes it."""
    qualified = name if "::" in name else f"aten::{name}"
    if name in native_operators():
        return Verdict("native", "in torch-npu's list")
    try:
        composite = any(torch._C._dispatch_has_kernel_for_dispatch_key(qualified, key) for key in COMPOSITE)
        structured = torch._C._dispatch_has_kernel_for_dispatch_key(qualified, STRUCTURED)
    except RuntimeError:
        raise ValueError(f"{name}: torch {torch.__version__} has no such operator") from None
    if composite:
        return Verdict("neutral", "composed of other operators")
    if structured:
        out = _find_out_overload(qualified)
        if out in native_operators():
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


def judge_calls(calls: Iterable[Call]) -> list[OperatorRow]:
    """Return a row for each call that :func:`record_operators` saw, with those that fall back first."""
    rows = set()
    for call in calls:
        verdict = classify_operator(call.operator, call.dtypes)
        if call.waits and verdict.kind != "falls back":
            verdict = Verdict("synchronises", "a copy between host and device that the host waits for")
        rows.add(OperatorRow(call.operator, call.dtypes, verdict.kind, call.site, verdict.reason))
    order: list[Kind] = ["falls back", "synchronises", "native", "neutral"]
    return sorted(rows, key=lambda row: (order.index(row.verdict), row.operator, row.site, row.dtypes))


def report_operators(device: str) -> list[OperatorRow]:
    """Run tiny steps on ``device`` in each of its dtypes, and classify every operator for an NPU.

    Pretraining with random masks, with those by the class token's attention, and with evolved ones, built on the host
    and on the device, by each objective; fine-tuning of each encoder and a probe, with the logits that they are
    measured by. Raises BackendError if ``device`` is not present.
    """
    backend = ehm.backends.torch.backend(device)
    calls: Counter[Call] = Counter()
    for dtype in backend.describe_device().dtypes:
        for masking, build in _MASKINGS:
            calls += _record_pretraining(backend, dtype, masking, build, "mae", _VIT)
        calls += _record_pretraining(backend, dtype, "evolved", "device", "simmim", _SWIN)
        with TemporaryDirectory() as folder:
            beit = _VIT | {"tokenizer": _save_tokenizer(backend, Path(folder))}
            calls += _record_pretraining(backend, dtype, "evolved", "device", "beit", beit)
        for loss in ("smooth_l1", "cosine"):
            calls += _record_pretraining(backend, dtype, "evolved", "host", "feature", _VIT | {"loss": loss})
        for model in (_VIT, _SWIN):
            calls += _record_classifier(backend, FinetuneConfig, dtype, model)
        calls += _record_classifier(backend, ProbeConfig, dtype, _VIT)
    return judge_calls(calls)


def _record_pretraining(
    backend: Any,
    dtype: str,
    masking: str,
    build: Literal["host", "device"],
    objective: str,
    model: Mapping[str, Any],
) -> Counter[Call]:
    sizes = dict(model)
    decoder = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
    config = TrainConfig.model_validate(
        {
            "objective": objective,
            "encoder": sizes.pop("encoder"),
            "image_size": 32,
            "patch_size": sizes.pop("patch_size"),
            "masking": masking,
            "model": {**sizes, **decoder},
            "mask": {"blocks": 3, "build": build, "unit": 8 if objective in ("mae", "feature") else 16},
            "optim": {**_OPTIM, "ema_decay": 0.9, "dtype": dtype},
            "run": {"grad_checkpointing": build == "device"},
        }
    )
    learner = backend.create_learner(config)
    masker = make_masker(masking, config.masks, config.units, build)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    with record_operators(backend.name) as calls:
        for step in range(2):  # the first one also makes the optimiser's state
            batch = learner.prepare_batch(images)
            mask, _ = masker(batch, 0.5, (step,))
            learner.train_step(batch, mask, 1e-3, 0.05)
    return calls


def _save_tokenizer(backend: Any, folder: Path) -> str:
    """Save an untrained tokenizer in ``folder``; return its path."""
    config = TokenizerConfig(vocabulary=16, width=8)
    meta = {"kind": "tokenizer", "step": 0, "epoch": 0, "config": config.model_dump(mode="json")}
    return str(save_checkpoint(folder, backend.create_tokenizer(config).state(), meta))


def _record_classifier(backend: Any, kind: type[FinetuneConfig], dtype: str, model: Mapping[str, Any]) -> Counter[Call]:
    settings = {"model": {**model, "image_size": 32, "drop_path": 0.1}, "optim": {**_OPTIM, "dtype": dtype}}
    classifier = backend.create_task_learner(kind.model_validate(settings), 3)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    targets = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    with record_operators(backend.name) as calls:
        for _ in range(2):
            classifier.train_step(images, targets, 1e-3, 0.05)
        classifier.compute_logits(images)
    return calls
