"""A simulated NPU, for tests only: ``import torch_npu`` after ``import torch`` installs a device ``npu`` on this CPU.

With this folder's parent on ``PYTHONPATH`` the product finds it where the real torch-npu would be, and every command
runs unmodified with ``--device npu``. A tensor of the device is a plain tensor whose storage is labelled ``npu:0`` and
points at CPU memory; one boxed kernel on PyTorch's PrivateUse1 key runs every operator there and labels the results.
Installing it cannot be undone in a process: use it in a subprocess. The interfaces of torch 2.14 that it stands on are
private, so it goes with that version of torch.

As on hardware: tensors of different devices do not mix; autocast, generators, the gradient scaler, ``torch.npu`` and
``hccl`` (gloo underneath) work. Stricter than hardware: float64 is refused, where the real one silently gives float32;
a single value (0-dim) may be float64, because ``torch.amp.GradScaler`` inverts its scale in it.

It cannot show: real numerics, speed, asynchronous errors, the dtypes and shapes that a kernel really takes, HCCL, or
anything inside torch-npu and CANN. It shows where tensors are, which operators arrive, and with which dtypes: claim no
more.

Environment variables, read once:

- ``EHM_SIMULATED_NPU_LOG=FILE``: at exit the process writes what arrived at the device to ``FILE.PID``, a JSON object a
  line with ``operator``, ``dtypes``, ``site`` and ``calls``.
- ``EHM_SIMULATED_NPUS``: how many devices there are, 1 if unset. All are the same memory, and ``npu:0``.
- ``TORCH_NPU_FALLBACK_CPU_DISABLE=1``: an operator that would fall back to the CPU raises, as with the real torch-npu.
"""

import importlib.metadata

import torch

torch.utils.rename_privateuse1_backend("npu")  # before anything below says torch.device("npu")

from torch_npu import autocast, generator, hccl, host, npu, registration  # noqa: E402

__version__ = importlib.metadata.version("torch-npu")  # of the METADATA beside this folder: that of torch
__all__ = ["npu", "npu_fusion_attention"]


def npu_fusion_attention(*tensors: object, **settings: object) -> None:
    """Refuse a call: transformers, which peft imports, looks for the name only."""
    raise NotImplementedError("npu_fusion_attention is not simulated")


registration.install()
autocast.install()
generator.install()
host.install()
hccl.install()

assert torch.accelerator.current_accelerator() == torch.device("npu")
