"""Two processes beside one: the same losses and weights from halves of the same batches.

Started as ``python -m ehm.verification.processes DEVICE FILE`` by torchrun or msrun, each process takes its share of
the steps, and the first one writes the losses and the sum of the weights into FILE.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ehm import backends
from ehm.backends.base import Backend
from ehm.errors import BackendError
from ehm.storage.reading import read_json
from ehm.storage.writing import write_json
from ehm.verification.cases import Case, create_learner, draw_images, draw_masks, load_weights
from ehm.verification.check import Measurement, SkipError

__all__ = ["check_two_processes", "take_shared_steps"]

_PROCESSES = 2
_CPUS = ("cpu", "mindspore:cpu")
"""Devices that any number of processes share."""
_IMAGES = 4
_STEPS = 4
_PATIENCE = 300
_LAST_LINES = 400
"""Characters of a failed process's errors that are looked at for a reason."""


def check_two_processes(backend: Backend, device: str) -> Iterator[Measurement]:
    """Train in two processes, each on a device of its own, and compare with this process."""
    kind = device.partition(":")[0]
    count = backend.describe_device().count
    if device not in _CPUS and count < _PROCESSES:
        raise SkipError(f"there is {count} device, and two processes need two")
    alone = take_shared_steps(backend)
    with TemporaryDirectory() as folder:
        shared = _start_processes(device if kind == "mindspore" else kind, Path(folder))
    losses = np.abs(np.subtract(shared["losses"], alone["losses"]) / alone["losses"]).max()
    weights = abs(shared["weights"] / alone["weights"] - 1)
    yield Measurement("losses", float(losses), 1e-3, "two processes beside one")
    yield Measurement("weights", float(weights), 1e-3, "the sum of their magnitudes")


def take_shared_steps(backend: Backend) -> dict[str, Any]:
    """Take some steps with all processes that there are; return the losses, and the sum of the weights' magnitudes."""
    config = Case("plain ViT, MAE", 65, 32).make_config(optim={"batch_size": _IMAGES})
    learner = create_learner(backend, config)
    load_weights(learner)
    share = _IMAGES // backend.processes.size
    rows = slice(backend.processes.rank * share, (backend.processes.rank + 1) * share)
    losses = []
    for step in range(_STEPS):
        batch = learner.prepare_batch(draw_images(config, _IMAGES, seed=step)[rows])
        metrics = learner.train_step(batch, draw_masks(config, _IMAGES, seed=step)[rows], 1e-3, 0.05)
        losses.append(float(metrics["loss"]))
    total = sum(float(np.abs(array).sum(dtype=np.float64)) for array in learner.state().model.values())
    return {"losses": losses, "weights": total}


def _start_processes(device: str, folder: Path) -> Any:
    """Start two processes of this module and return what the first one has written."""
    answer = folder / "answer.json"
    work = ["-m", "ehm.verification.processes", device, str(answer)]
    folder_of_python = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        # torchrun itself should not load the plug-in of a device
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        # msrun takes "python" by this name alone, and the environment of this one need not be active
        "PATH": os.pathsep.join([folder_of_python, os.environ.get("PATH", "")]),
    }
    if device.startswith("mindspore"):
        launcher = [which("msrun", path=environment["PATH"]) or "msrun", "--join", "True", "--log_dir", str(folder)]
        launcher += ["--worker_num", str(_PROCESSES), "--local_worker_num", str(_PROCESSES), "python"]
    else:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc_per_node", str(_PROCESSES)]
    try:
        done = subprocess.run(
            [*launcher, *work], capture_output=True, text=True, timeout=_PATIENCE, env=environment, check=False
        )
    except FileNotFoundError as error:
        raise SkipError(f"{launcher[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise BackendError(f"two processes gave no answer within {_PATIENCE} seconds") from error
    if not answer.exists():
        words = [line for line in done.stderr[-_LAST_LINES:].splitlines() if "Error" in line] or [done.stderr[-120:]]
        raise BackendError(f"two processes ended with status {done.returncode}: {words[-1].strip()}")
    return read_json(answer)


def _main() -> None:
    device, answer = sys.argv[1:]
    backend = backends.get(device)
    found = take_shared_steps(backend)
    if backend.processes.rank == 0:
        write_json(Path(answer), found)


if __name__ == "__main__":
    _main()
