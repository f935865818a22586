"""The parts of a bulk prediction on a Ray cluster, by Ray Data's pool of actors, each of which holds the network.

Only the numbers of parts and their summaries travel through Ray: an actor reads its images itself, and writes its
Parquet file itself. Ray starts an actor that died again, and gives it the same part. As the file of a part gets its
name when it is complete, nothing is lost and nothing is there twice.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.deploy.predict.bulk.job import BulkJob, reopen_images
from ehm.deploy.predict.bulk.worker import PartSummary, PartWorker
from ehm.errors import BackendError, EhmError
from ehm.installation import build_install_command

__all__ = ["choose_device", "count_workers", "predict_on_ray", "start_ray"]

_DEVICE_RESOURCES = {"cuda": "GPU", "tensorrt": "GPU", "npu": "NPU", "om": "NPU"}
"""Ray's names of the devices that a worker takes one of."""
_LOCAL = "local"
"""The address of a Ray that is started for this call, and ends with it."""
_OBJECT_STORE = 200_000_000
"""Bytes of shared memory for a Ray of our own, which holds no image."""


class _PartActor:
    """A worker in a process of its own, in the form that Ray Data maps over batches of one row."""

    def __init__(self, job: BulkJob) -> None:
        self._job = job
        self._worker: PartWorker | None = None

    def __call__(self, batch: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[Any]]:
        # a problem is told as a row: Ray would print tracebacks of an exception, and try again what fails again
        part = int(batch["part"][0])
        row: dict[str, Any] = asdict(PartSummary(part, 0, 0, 0.0, 0.0)) | {"problem": ""}
        try:
            if self._worker is None:
                self._worker = PartWorker(self._job, reopen_images(self._job))
            row |= asdict(self._worker.predict_part(part))
        except EhmError as error:
            row["problem"] = str(error)
        return {name: np.array([value]) for name, value in row.items()}


def start_ray(address: str) -> Any:
    """Connect to a Ray cluster, and return the module ray.

    An empty ``address`` is the cluster of this machine, which is started if none runs; ``local`` always starts one.
    Raises BackendError if ray is not installed or nobody answers there.
    """
    try:
        import ray
        import ray.data  # needs pandas and pyarrow
    except ImportError:
        raise BackendError(f"Ray Data is not installed; {build_install_command('ray')} installs it") from None
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        return ray
    try:
        _connect(ray, address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise BackendError(f"--ray {address}: {' '.join(str(error).split())}") from None
    return ray


def _connect(ray: Any, address: str) -> None:
    # Ray warns that an actor which starts again needs its arguments, and this process holds them until the end
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    own = {"address": _LOCAL, "include_dashboard": False, "object_store_memory": _OBJECT_STORE, **quiet}
    if address == _LOCAL:
        ray.init(**own)
        return
    try:
        ray.init(address=address or "auto", **quiet)
    except ConnectionError:
        if address:
            raise
        ray.init(**own)  # none runs on this machine


def choose_device(ray: Any, device: str) -> str:
    """Return ``device``, or for ``auto`` the one that the cluster has: a worker gets what it asks for, and no more."""
    if device != "auto":
        return device
    resources = ray.cluster_resources()
    if resources.get("GPU"):
        return "cuda"
    return "npu" if resources.get("NPU") else "cpu"


def count_workers(ray: Any, device: str, cpus: int) -> int:
    """Return how many workers the cluster has room for; raises BackendError if it has none of the device."""
    resources = ray.cluster_resources()
    wanted = _describe_resources(device, cpus)
    room = [resources.get("CPU", 0) // cpus]
    if "num_gpus" in wanted:
        room.append(resources.get("GPU", 0))
    for name, amount in wanted.get("resources", {}).items():
        room.append(resources.get(name, 0) // amount)
    if min(room) < 1:
        has = ", ".join(f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU", "NPU"))
        raise BackendError(f"--ray: has no room for a worker on {device} with {cpus} CPU; the cluster has {has}")
    return int(min(room))


def predict_on_ray(ray: Any, job: BulkJob, parts: Sequence[int], workers: int) -> Iterator[PartSummary]:
    """Predict ``parts`` by ``workers`` actors, and yield the summary of each part that is done, in any order.

    Raises EhmError with the sentence of an actor, or BackendError for anything else that ends the work.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    numbers = [{"part": part} for part in parts]
    dataset = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(
        _PartActor,
        batch_size=1,
        fn_constructor_args=(job,),
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(numbers))),
        **_describe_resources(job.device, job.threads),
    )
    try:
        for row in dataset.iter_rows():
            problem = row.pop("problem")
            if problem:
                raise EhmError(problem)
            yield PartSummary(**row)
    except ray.exceptions.RayError as error:
        # the last words: a traceback of the actor stands before them
        raise BackendError(f"--ray: {' '.join(str(error).split())[-400:]}") from error


def _describe_resources(device: str, cpus: int) -> dict[str, Any]:
    """Return what Ray reserves for a worker: it hides the devices of others from it."""
    name = _DEVICE_RESOURCES.get(device.partition(":")[0])
    if name == "GPU":
        return {"num_cpus": cpus, "num_gpus": 1}
    if name is not None:
        return {"num_cpus": cpus, "resources": {name: 1}}
    return {"num_cpus": cpus}
