"""Copies between the host and a device, beside the arithmetic of the device.

A device does what it is given in the order of a stream. Copies have streams of their own, one in each direction, so
that they run beside the kernels of the stream of a step. An event is a place in a stream that another one waits for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ehm.backends.torch.engine.devices import get_device_module

__all__ = ["start_download", "start_upload", "upload_array"]


def upload_array(array: NDArray[Any], device: torch.device) -> Tensor:
    """Return ``array`` as a tensor on ``device``; an accelerator copies it while the host goes on."""
    return start_upload(array, device)()


def start_upload(array: NDArray[Any], device: torch.device) -> Callable[[], Tensor]:
    """Start to copy ``array`` to ``device``; the function returned gives the tensor, whenever it is called.

    The host never waits. What the device is given behind that call waits for the copy, and nothing before it does.
    """
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return lambda: tensor
    # a copy in the background needs memory that is not paged
    pinned = tensor.pin_memory()
    module = get_device_module(device)
    stream = _get_copy_stream(device, "to the device")
    if stream is None:
        copy = pinned.to(device, non_blocking=True)
        return lambda: copy
    with module.stream(stream):
        copy = pinned.to(device, non_blocking=True)
        copied = stream.record_event()

    def take() -> Tensor:
        reader = module.current_stream(device)
        reader.wait_event(copied)
        # its memory belongs to the other stream, which may take it again only when this one has read it
        copy.record_stream(reader)
        return copy

    return take


def start_download(tensor: Tensor) -> Callable[[], NDArray[Any]]:
    """Start to copy ``tensor`` to the host; the function returned waits for this copy alone, and returns it.

    The device goes on with what it is given next: it changes nothing of ``tensor`` before it is copied.
    """
    device = tensor.device
    if device.type == "cpu":
        return tensor.numpy
    module = get_device_module(device)
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    stream = _get_copy_stream(device, "to the host")
    if stream is None:
        copy.copy_(tensor, non_blocking=True)
        copied = module.Event()
        copied.record()
    else:
        computed = module.current_stream(device).record_event()
        stream.wait_event(computed)
        with module.stream(stream):
            copy.copy_(tensor, non_blocking=True)
            copied = stream.record_event()
        # the caller may let go of it at once
        tensor.record_stream(stream)

    def wait() -> NDArray[Any]:
        copied.synchronize()
        array: NDArray[np.generic] = copy.numpy()
        return array

    return wait


@cache
def _get_copy_stream(device: torch.device, direction: Literal["to the device", "to the host"]) -> Any:
    """Return the stream of all copies in a direction; None for a device that has no streams beside its one."""
    create = getattr(get_device_module(device), "Stream", None)
    return None if create is None else create(device)
