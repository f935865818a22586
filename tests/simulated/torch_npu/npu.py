"""This module is ``torch.npu``: what the product calls, and what ``torch.accelerator`` and autocast ask for."""

import os
import time
import types

import torch

from torch_npu import generator
from torch_npu.storage import SIZE, Usage

_COUNT = int(os.environ.get("EHM_SIMULATED_NPUS", "1"))
_NAME = "Ascend910B (simulated)"
matmul = types.SimpleNamespace(allow_hf32=False)
_initialized = True  # torch.utils.checkpoint keeps the device's random state where this says so


class Event:
    """Everything has happened already when it is recorded."""

    def __init__(self, *args, **kwargs):
        self._at = 0.0

    def record(self, stream=None):
        self._at = time.perf_counter()

    def elapsed_time(self, other):
        return (other._at - self._at) * 1e3

    def synchronize(self):
        pass

    def wait(self, stream=None):
        pass

    def query(self):
        return True


class Stream:
    """Runs everything at once, in order."""

    def __init__(self, *args, **kwargs):
        pass

    def synchronize(self):
        pass

    def query(self):
        return True

    def wait_stream(self, stream):
        pass

    def wait_event(self, event):
        pass

    def record_event(self, event=None):
        event = event or Event()
        event.record()
        return event

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        pass


class device:  # noqa: N801
    """A block on one device, which all are."""

    def __init__(self, device):
        index_of(0 if device is None else device)

    def __enter__(self):
        pass

    def __exit__(self, *problem):
        pass


_stream = Stream()


def index_of(device):
    """Number of a device given as a number, a name or None."""
    index = device if isinstance(device, int) else torch.device("npu" if device is None else device).index or 0
    if not 0 <= index < _COUNT:
        raise RuntimeError(f"invalid device ordinal npu:{index}: the simulation has {_COUNT} (EHM_SIMULATED_NPUS)")
    return index


def set_device(device):
    index_of(device)


def current_device():
    return 0  # whichever was set: FSDP compares it with where tensors are


def device_count():
    return _COUNT


def is_available():
    return _COUNT > 0


def is_initialized():
    return True


def is_bf16_supported():
    return True


def get_amp_supported_dtype():
    return [torch.float16, torch.bfloat16, torch.float32]


def get_device_name(device=None):
    index_of(device)
    return _NAME


def get_device_properties(device=None):
    index_of(device)
    return types.SimpleNamespace(name=_NAME, total_memory=SIZE)


def mem_get_info(device=None):
    index_of(device)
    return SIZE - Usage.current, SIZE


def memory_allocated(device=None):
    return Usage.current


def max_memory_allocated(device=None):
    return Usage.peak


def reset_peak_memory_stats(device=None):
    Usage.peak = Usage.current


def memory_stats(device=None):
    return {"allocated_bytes.all.current": Usage.current, "allocated_bytes.all.peak": Usage.peak}


def empty_cache():
    pass


def synchronize(device=None):
    pass


def current_stream(device=None):
    return _stream


def stream(chosen):
    return chosen or _stream


def manual_seed(seed):
    generator.default.manual_seed(int(seed))


manual_seed_all = manual_seed


def get_rng_state(device="npu"):
    return generator.default.get_state()


def set_rng_state(state, device="npu"):
    generator.default.set_state(state)


def _is_in_bad_fork():
    return False
