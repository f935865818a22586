"""The report behind ``ehm doctor --operators``: what runs on a device, and the verdict on each operator."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

import ehm.backends.torch
from ehm.backends.torch.diagnosis.callables import record_callable
from ehm.backends.torch.diagnosis.operators import OperatorRow, judge_calls
from ehm.backends.torch.diagnosis.parts import PARTS
from ehm.backends.torch.diagnosis.recording import Call, record_operators
from ehm.errors import ConfigError, EhmError
from ehm.installation import build_install_command

__all__ = ["list_omissions", "print_report", "report_callable", "report_parts"]

Tell = Callable[[str, int, int], None]
"""A function that is told what is being recorded, how much is done, and of how much."""


def print_report(device: str, subject: str) -> None:
    """Print the report as lines of JSON, of which the last one is the answer and the others say how far it is.

    ``subject`` is the name of a part, MODULE:FUNCTION, or "" for all parts.
    """

    def tell(what: str, done: int, total: int) -> None:
        print(json.dumps({"now": what, "done": done, "total": total}), flush=True)

    answer: dict[str, Any]
    try:
        if ":" in subject:
            answer = {"operators": list(map(asdict, report_callable(subject, device))), "omissions": []}
        else:
            rows = report_parts(device, subject, tell)
            answer = {"operators": list(map(asdict, rows)), "omissions": list_omissions()}
    except EhmError as error:
        answer = {"error": str(error), "is_config_error": isinstance(error, ConfigError)}
    print(json.dumps(answer), flush=True)


def report_parts(
    device: str, part: str = "", tell: Tell | None = None, dtypes: Sequence[str] | None = None
) -> list[OperatorRow]:
    """Run tiny steps of a ``part`` of ehm, or of all, on ``device``, and judge the operators.

    They are run in each of the precisions ``dtypes``, or in all that the device has. Raises BackendError if ``device``
    is not present, ConfigError if there is no such part.
    """
    if part and part not in PARTS:
        known = ", ".join(PARTS)
        raise ConfigError(f"{part}: no part of ehm; there are {known}, or MODULE:FUNCTION for a network of yours")
    backend = ehm.backends.torch.backend(device)
    names = [part] if part else list(PARTS)
    if dtypes is None:
        dtypes = backend.describe_device().dtypes
    runs = [(name, dtype) for name in names for dtype in dtypes]
    parts: dict[Call, set[str]] = {}
    for number, (name, dtype) in enumerate(runs):
        if tell is not None:
            tell(f"{name} in {dtype}", number, len(runs))
        for run in PARTS[name](backend, dtype):
            with record_operators(backend.name) as calls:
                run()
            for call in calls:
                parts.setdefault(call, set()).add(name)
    return judge_calls(parts, parts)


def report_callable(target: str, device: str) -> list[OperatorRow]:
    """Run the module that ``target`` = MODULE:FUNCTION returns on ``device``, and judge its operators.

    Raises BackendError if ``device`` is not present, ConfigError if the module cannot be had or does not run.
    """
    backend = ehm.backends.torch.backend(device)
    return judge_calls(record_callable(target, backend.device))


def list_omissions() -> list[str]:
    """Return a sentence on each thing that ehm can run and that is not recorded here."""
    omissions = []
    if find_spec("peft") is None:
        omissions.append(
            "Low-rank updates (lora.rank) are left out: peft is not installed; "
            f"{build_install_command('lora')} installs it."
        )
    if find_spec("transformers") is None:
        omissions.append(
            "language and vision_language are left out: transformers is not installed; "
            f"{build_install_command('language')} installs it."
        )
    return omissions
