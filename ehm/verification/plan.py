"""The list of checks for a device: all of them, or those of two minutes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ehm.backends.base import Backend
from ehm.verification.cases import Case, list_cases
from ehm.verification.check import Check, Measurement, SkipError
from ehm.verification.curve import MASKINGS, check_curve
from ehm.verification.export import check_export
from ehm.verification.masks import check_host_trees, compare_device_masks, compare_host_masks
from ehm.verification.numerics import compare_with_cpu, compare_with_numpy
from ehm.verification.operators import check_fallbacks
from ehm.verification.optimiser import OPTIMISER_CHECKS
from ehm.verification.processes import check_two_processes
from ehm.verification.state import check_checkpoint, check_crossing, check_resume, check_resume_in_child
from ehm.verification.task_numerics import STEPS, compare_step_with_cpu, compare_step_with_numpy

__all__ = ["list_checks"]

_NO_OTHER = "torch's CPU is the one to compare with: it is this device, or torch is not installed"


def list_checks(
    backend: Backend, device: str, cpu: Backend | None, quick: bool, tokenizer: str | None
) -> Iterator[Check]:
    """Yield the checks of ``backend``, which is ``device``.

    ``cpu`` is what it is compared with, None if there is none. ``tokenizer`` is a checkpoint for BEiT.
    """
    dtypes = backend.describe_device().dtypes
    cases = list(list_cases(dtypes, quick, tokenizer))
    for case in cases:
        yield Check("numerics", case.name, _guess_seconds(case), partial(compare_with_numpy, backend, case))
    for name in STEPS:
        yield Check("tasks", name, 2, partial(compare_step_with_numpy, backend, name))
    for case in cases:
        if case.dtype == "float32" and cpu is not None:
            work = partial(compare_with_cpu, backend, cpu, case)
            yield Check("beside the CPU", case.name, _guess_seconds(case) / 2, work)
    for name in STEPS:
        work = partial(_explain, _NO_OTHER) if cpu is None else partial(compare_step_with_cpu, backend, cpu, name)
        yield Check("beside the CPU", name, 0.5, work)
    for name, check in OPTIMISER_CHECKS.items():
        yield Check("optimiser", name, 0.3, partial(check, backend))
    yield from _list_mask_checks(backend, quick)
    yield Check("resume", "bit for bit", 1, partial(check_resume, backend, deterministic=False))
    yield Check("resume", "bit for bit, run.deterministic", 8, partial(check_resume_in_child, device))
    yield Check("resume", "a checkpoint's files", 1, partial(check_checkpoint, backend))
    crossing = partial(_explain, _NO_OTHER) if cpu is None else partial(check_crossing, backend, cpu)
    yield Check("resume", "through the CPU and back", 2, crossing)
    for masking in MASKINGS:
        for dtype in ("float32",) if quick else dtypes:
            work = partial(check_curve, backend, masking, dtype)
            yield Check("losses of 20 steps", f"{masking} masks, {dtype}", 2, work)
    yield Check("operators", "on the device", 20, partial(check_fallbacks, device))
    yield Check("processes", "two", 15, partial(check_two_processes, backend, device))
    kinds = ["plain ViT, MAE"]
    if not quick:
        kinds += ["Swin, SimMIM", "rotary positions, SwiGLU and registers (DINOv3), MAE"]
    for kind in kinds:
        yield Check("export", kind, 5, partial(check_export, backend, device, kind))


def _list_mask_checks(backend: Backend, quick: bool) -> Iterator[Check]:
    yield Check("masks", "the host's trees", 2, check_host_trees)
    for tokens in (50, 197) if quick else (50, 65, 197):
        case = Case("plain ViT, MAE", tokens, 32)
        yield Check("masks", f"of the host, {tokens} tokens", 1, partial(compare_host_masks, backend, case))
        yield Check("masks", f"of the device, {tokens} tokens", 1, partial(compare_device_masks, backend, case))


def _guess_seconds(case: Case) -> float:
    return {50: 0.6, 65: 0.8, 197: 4.0}[case.tokens] * (3.0 if case.is_swin else 1.0)


def _explain(reason: str) -> Iterator[Measurement]:
    raise SkipError(reason)
