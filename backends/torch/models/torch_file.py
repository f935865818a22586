"""Read a file of weights in torch's own format, or in safetensors, without executing anything in it."""

from __future__ import annotations

import argparse
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ehm.errors import CheckpointError, take_first_line
from ehm.models.opening import read_safetensors
from ehm.storage.arrays import Arrays
from ehm.storage.reading import shorten
from ehm.storage.torch_file import TORCHSCRIPT, explain_refusal, flatten_tensors

__all__ = ["read_arrays"]


def read_arrays(path: Path) -> Arrays:
    """Read the arrays of a ``.safetensors`` file, or of a torch file with tensors at its top or in sections below it.

    Anything but tensors is refused with a CheckpointError, unless it cannot run code.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        # published files hold their program's settings beside the tensors: argparse's namespace is inert, and a plain
        # dictionary stands in for yacs's
        with torch.serialization.safe_globals([argparse.Namespace, (OrderedDict, "yacs.config.CfgNode")]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        reason = _explain_refused(error)
        raise CheckpointError(f"{path}: not a file of tensors that torch reads safely: {reason}") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not tensors by name")
    return flatten_tensors(content, _to_array)


def _to_array(value: Any) -> NDArray[Any] | None:
    """Return the numbers of a tensor; None for anything else."""
    if not isinstance(value, Tensor):
        return None
    if value.is_floating_point():  # NumPy has no bfloat16
        value = value.float()
    array: NDArray[Any] = value.detach().numpy()
    return array


def _explain_refused(error: Exception) -> str:
    """Say what torch's safe reading refused; torch's own words advise to read the file unsafely."""
    if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return explain_refusal(refused[1])
    if "TorchScript" in str(error):
        return TORCHSCRIPT
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged, or no file of torch's"
    return f"it is damaged, or no file of torch's ({shorten(take_first_line(error))})"
