"""A record of the operators that arrived at the device, with dtypes and call sites."""

import atexit
import json
import os
import warnings
from collections import Counter

from ehm.backends.torch.diagnosis.operators import read_native_operators
from ehm.backends.torch.diagnosis.recording import find_call_site

STRICT = os.environ.get("TORCH_NPU_FALLBACK_CPU_DISABLE") == "1"
NATIVE = read_native_operators()
calls = Counter()
_warned = set()


def note(operator, dtypes):
    """Count a call; an operator that torch-npu has no kernel for warns, or raises, as it does there."""
    site = find_call_site()
    calls[operator, dtypes, site] += 1
    if operator in NATIVE or operator in _warned:
        return
    message = f"The operator 'aten::{operator}' is not currently supported on the NPU backend ({site})"
    if STRICT:
        raise NotImplementedError(message)
    _warned.add(operator)
    warnings.warn(f"CAUTION: {message} and will fall back to run on the CPU.", RuntimeWarning, stacklevel=2)


def _write(path):
    with open(f"{path}.{os.getpid()}", "w", encoding="utf-8") as file:
        for (operator, dtypes, site), count in sorted(calls.items()):
            row = {"operator": operator, "dtypes": dtypes, "site": site, "calls": count}
            file.write(json.dumps(row) + "\n")


if os.environ.get("EHM_SIMULATED_NPU_LOG"):
    atexit.register(_write, os.environ["EHM_SIMULATED_NPU_LOG"])
