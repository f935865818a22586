"""``ehm verify``: whether a device computes what it should, and how fast."""

from __future__ import annotations

import os
import time
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from ehm import backends
from ehm.backends.base import Backend
from ehm.config import TokenizerConfig
from ehm.console import console, print_line
from ehm.errors import BackendError, ConfigError
from ehm.storage.checkpoint import save_checkpoint
from ehm.verification.check import run_checks
from ehm.verification.machine import describe_machine
from ehm.verification.plan import list_checks
from ehm.verification.report import Verification, print_table, write_results
from ehm.verification.speed import measure_speeds
from ehm.verification.status import VerificationStatus

__all__ = ["verify"]

DEFAULT_OUT = Path("runs/verify")
_DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""Read when a device is first used, and harmless for what is not deterministic."""


def verify(device: str = "auto", quick: bool = False, out: str | Path | None = None, json: bool = False) -> int:
    """Check that ``device`` computes as NumPy and as the CPU do, and measure how fast; return 0 if no check failed.

    Attention, losses and gradients of every kind of block and of every task, optimisers, trees and masks, resuming, the
    losses of 20 steps, operators that fall back, two processes, and the exported network. Prints a table and writes
    ``verify.json`` and ``verify.md`` into ``out`` (``runs/verify`` if left out). ``quick`` takes about two minutes
    instead of fifteen, and ``json`` prints ``verify.json`` instead of the table.
    Raises BackendError if there is no such device.
    """
    folder = Path(DEFAULT_OUT if out is None else out)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder}: is a file; give a folder")
    for name, value in _DETERMINISTIC.items():
        os.environ.setdefault(name, value)
    backend = backends.get(device)
    if backend.processes.size > 1:
        raise BackendError("start ehm verify by itself, not by torchrun or msrun: it starts its own processes")
    name = device if device != "auto" else backend.name
    info = backend.describe_device()
    start = time.monotonic()
    machine = describe_machine(backend)
    length = "two" if quick else "fifteen"
    console.print(f"Verify {name} ({info.description}); about {length} minutes on a machine that does nothing else")
    with TemporaryDirectory() as scratch:
        tokenizer = _make_tokenizer(backend, Path(scratch))
        checks = list(list_checks(backend, name, _find_cpu(name), quick, tokenizer))
        results = run_checks(checks)
    speeds, problems = measure_speeds(backend, quick)
    found = Verification(
        datetime.now(timezone.utc).date().isoformat(),
        f"ehm verify --device {name}{' --quick' if quick else ''}",
        time.monotonic() - start,
        machine,
        results,
        speeds,
        problems,
    )
    if not json:
        print_table(found)
    paths = write_results(found, folder)
    if json:
        print_line(paths[0].read_text(encoding="utf-8").removesuffix("\n"))
    console.print(found.summary)
    console.print(f"{paths[0]} and {paths[1]} hold versions and figures, but no names and paths: they can be posted")
    return VerificationStatus(found, folder)


def _find_cpu(device: str) -> Backend | None:
    """Return torch's CPU, None if that is ``device`` itself or is not installed.

    MindSpore's is no alternative: a process of MindSpore has one target.
    """
    if device.partition(":")[0] == "cpu" or find_spec(backends.find_framework("cpu")) is None:
        return None
    return backends.get("cpu")


def _make_tokenizer(backend: Backend, folder: Path) -> str | None:
    """Save an untrained tokenizer for BEiT; None if the backend has none."""
    config = TokenizerConfig(vocabulary=32, width=16)
    try:
        learner = backend.create_tokenizer(config)
    except BackendError:
        return None
    metadata = {"kind": "tokenizer", "step": 0, "epoch": 0, "config": config.model_dump(mode="json")}
    return str(save_checkpoint(folder, learner.state(), metadata))
