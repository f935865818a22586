"""ONNX Runtime sessions by ``--device`` name. The table below is all that differs between devices."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ehm.errors import BackendError, ExportError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["PROVIDERS", "Provider", "open_session"]


@dataclass(frozen=True)
class Provider:
    """An execution provider of ONNX Runtime and the package that brings it."""

    name: str
    package: str
    options: dict[str, str]
    numbered: bool = True


PROVIDERS: dict[str, Provider] = {
    "npu": Provider("CANNExecutionProvider", "onnxruntime-cann", {"precision_mode": "must_keep_origin_dtype"}),
    "cuda": Provider("CUDAExecutionProvider", "onnxruntime-gpu", {"use_tf32": "0"}),
    "cpu": Provider("CPUExecutionProvider", "onnxruntime", {}, numbered=False),
}
"""By device name, fastest first: ``auto`` takes the first that is installed and starts.

The options keep float32 as float32: CANN computes in float16 by default, CUDA multiplies in TF32."""


def open_session(model: Path, device: str = "cpu", threads: int = 0) -> InferenceSession:
    """Load ``model`` on ``cpu``, ``cuda``, ``npu``, one of them by number (``cuda:1``), or ``auto``.

    ``threads`` are those of one operator on the CPU, by default one a core.

    ONNX Runtime falls back to the CPU without a word when a provider cannot start; here that is a BackendError.
    """
    if find_spec("onnxruntime") is None:
        raise BackendError("onnxruntime is not installed; pip install 'ehm[serve]' installs it")
    import onnxruntime

    name, _, number = device.partition(":")
    known = name in PROVIDERS and (not number or (PROVIDERS[name].numbered and number.isdecimal()))
    if name != "auto" and not known:
        raise BackendError(f"--device {device}: unknown to ONNX Runtime; known are auto, {', '.join(PROVIDERS)}")
    available = onnxruntime.get_available_providers()
    if known and PROVIDERS[name].name not in available:
        raise BackendError(
            f"--device {device}: ONNX Runtime here lacks {PROVIDERS[name].name}, which the package "
            f"{PROVIDERS[name].package} brings; --device cpu works here"
        )
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3  # errors only: remarks about graph optimisation tell the user nothing
    for provider in [PROVIDERS[name]] if known else PROVIDERS.values():
        if provider.name not in available:
            continue
        options = {**provider.options, "device_id": number} if number else provider.options
        try:
            session = onnxruntime.InferenceSession(model, settings, providers=[(provider.name, options)])
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own
            raise ExportError(f"{model}: ONNX Runtime {onnxruntime.__version__} cannot load it: {error}") from None
        if session.get_providers()[0] == provider.name:
            return session
    raise BackendError(f"--device {device}: {provider.name} is installed but cannot start; --device cpu works here")
