"""ONNX Runtime sessions by ``--device`` name. The table below is all that differs between devices."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from ehm.errors import BackendError, ExportError
from ehm.installation import build_install_command
from ehm.processors import count_physical_cores
from ehm.storage.names import refuse_undecodable
from ehm.storage.reading import shorten
from ehm.suggestions import suggest

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnxruntime import InferenceSession

    from ehm.deploy.bundle.manifest import Precision

__all__ = [
    "OFFLINE_DEVICE",
    "PROVIDERS",
    "Provider",
    "Session",
    "check_device",
    "list_installed_devices",
    "open_session",
]

_SPIN_MICROSECONDS = 20
"""The time for which a thread spins for its next piece of work before it sleeps.

To wake a sleeping thread takes longer than many operators of a small network. Of 5, 20, 50, 100 and 300, 20 is the
longest that costs two runs at once no processor time, and takes a fifth off a run that has the cores to itself.
"""


class Session(Protocol):
    """A loaded network: a session of ONNX Runtime, or what stands for one elsewhere."""

    def run(self, names: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[Any]:
        """Return the outputs of those names for inputs by their names."""
        ...

    def get_providers(self) -> list[str]:
        """Return the names of what runs the network, the one that runs most of it first."""
        ...


@dataclass(frozen=True)
class Provider:
    """An execution provider of ONNX Runtime and the package that brings it.

    ``options`` are for all networks; ``lower`` are added for those in a lower precision than float32; ``threads`` is
    the name of the option for their number, if that is not the session's. ``numbered`` devices can be several.
    ``beside`` is the device that takes the operators which this one lacks; ``needs`` is what else has to be installed.
    ``auto`` tries a provider only if it is ``automatic``.
    """

    name: str
    package: str
    options: dict[str, str]
    numbered: bool = True
    lower: dict[str, str] = field(default_factory=dict)
    threads: str | None = None
    beside: str | None = None
    needs: str = ""
    automatic: bool = True


PROVIDERS: dict[str, Provider] = {
    "npu": Provider(
        "CANNExecutionProvider",
        "onnxruntime-cann",
        {"precision_mode": "must_keep_origin_dtype", "dump_om_model": "0"},
    ),
    "cuda": Provider("CUDAExecutionProvider", "onnxruntime-gpu", {"use_tf32": "0"}),
    "openvino": Provider(
        "OpenVINOExecutionProvider",
        "onnxruntime-openvino",
        {"device_type": "CPU"},
        numbered=False,
        lower={"load_config": json.dumps({"CPU": {"INFERENCE_PRECISION_HINT": "bf16"}})},
        threads="num_of_threads",
    ),
    "cpu": Provider("CPUExecutionProvider", "onnxruntime", {}, numbered=False),
    "tensorrt": Provider(
        "TensorrtExecutionProvider",
        "onnxruntime-gpu",
        {},
        lower={"trt_fp16_enable": "1", "trt_layer_norm_fp32_fallback": "1"},
        beside="cuda",
        needs="it needs TensorRT's own libraries, of the version that ONNX Runtime's documentation names",
        automatic=False,
    ),
}
"""By device name, fastest first: ``auto`` takes the first that is installed and starts. It leaves out TensorRT, whose
provider comes with that of CUDA and compiles for minutes.

The options keep float32 as float32: CANN computes in float16 by default, CUDA multiplies in TF32. What CANN compiles
is not kept in the working folder: its name there depends on the network's path and not on its weights, and a replaced
bundle would go on as the old one (ONNX Runtime's cann_execution_provider.cc and model_metadef_id_generator.cc). After
1.24.4, the precision is an option of another name, ``precision_mode_v2``: ``origin``. OpenVINO (Intel's processors)
computes what is not int8 in bfloat16 where the network is in lower precision and the processor has it."""

OFFLINE_DEVICE = "om"
"""The device that runs the offline model of a bundle, without ONNX Runtime; ``om:1`` is the second NPU."""

_MESSAGE = 500
"""Most characters of a message of ONNX Runtime that are passed on."""

_log = logging.getLogger(__name__)


def list_installed_devices() -> list[str]:
    """Return the devices that ``auto`` tries: those whose providers this ONNX Runtime has, fastest first."""
    return _list_automatic(_import_onnxruntime().get_available_providers())


def open_session(
    model: Path,
    device: str = "cpu",
    threads: int = 0,
    precision: Precision = "float32",
    more_options: Mapping[str, str] = MappingProxyType({}),
) -> InferenceSession:
    """Load ``model``, a network in ``precision``, on a device of ``PROVIDERS`` or ``auto``.

    A number chooses among several (``cuda:1``). ``threads`` are those of one operator on a CPU, by default one for each
    core that this process may use. ``more_options`` are the provider's, beside those of the table.

    ONNX Runtime falls back to the CPU without a word if a provider cannot start; here that is a BackendError. With
    ``auto``, a provider that cannot start or cannot load the network is a warning in the log, and the next one is
    tried. Raises ExportError if none can load the network.
    """
    refuse_undecodable(model, "ONNX Runtime")
    onnxruntime = _import_onnxruntime()
    candidates = _find_candidates(device, onnxruntime.get_available_providers())
    settings = _make_session_options(threads)
    _, _, number = device.partition(":")
    for provider in candidates:
        last = provider is candidates[-1]
        providers = _list_providers(provider, number, threads, precision, more_options)
        try:
            # its own fallback prints to standard output, which belongs to the results
            session = onnxruntime.InferenceSession(model, settings, providers=providers, enable_fallback=False)
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own
            reason = shorten(str(error), _MESSAGE)
            if last:
                raise ExportError(f"{model}: ONNX Runtime {onnxruntime.__version__} cannot load it: {reason}") from None
            _log.warning("--device auto: %s cannot load %s; trying the next: %s", provider.name, model, reason)
            continue
        # a provider that cannot start is missing here, and the CPU has taken its place
        if session.get_providers()[0] == provider.name:
            return session
        if not last:
            _log.warning("--device auto: %s is installed but cannot start; trying the next", provider.name)
    needs = f"; {provider.needs}" if provider.needs else ""
    raise BackendError(
        f"--device {device}: {provider.name} is installed but cannot start{needs}; --device cpu works here"
    )


def check_device(device: str) -> None:
    """Raise BackendError if ONNX Runtime does not know a device, or its provider is not installed."""
    _find_candidates(device, _import_onnxruntime().get_available_providers())


def _list_providers(
    provider: Provider, number: str, threads: int, precision: Precision, more_options: Mapping[str, str]
) -> list[tuple[str, dict[str, str]]]:
    """Return the providers of a session with their options: ``provider``, and the one beside it if there is one."""
    options = dict(provider.options)
    if precision != "float32":
        options |= provider.lower
    if threads and provider.threads:
        options[provider.threads] = str(threads)
    providers = [(provider.name, {**options, **more_options})]
    if provider.beside is not None:
        other = PROVIDERS[provider.beside]
        providers.append((other.name, dict(other.options)))
    if number:
        for _, own_options in providers:
            own_options["device_id"] = number
    return providers


def _list_automatic(available: Sequence[str]) -> list[str]:
    """Return the devices that ``auto`` tries if the providers of those names are installed."""
    devices = []
    for device, provider in PROVIDERS.items():
        if provider.automatic and provider.name in available:
            devices.append(device)
    return devices


def _find_candidates(device: str, available: Sequence[str]) -> list[Provider]:
    """Return the providers to try for a device, in order; raises BackendError if it is unknown or not installed."""
    if device == "auto":
        return [PROVIDERS[name] for name in _list_automatic(available)]
    name, _, number = device.partition(":")
    if name not in PROVIDERS or (number and not (PROVIDERS[name].numbered and number.isdecimal())):
        known = f"auto, {', '.join(PROVIDERS)} and om{suggest(name, PROVIDERS)}"
        raise BackendError(f"--device {device}: unknown to ONNX Runtime; known are {known}")
    provider = PROVIDERS[name]
    if provider.name not in available:
        raise BackendError(
            f"--device {device}: ONNX Runtime here lacks {provider.name}, which the package "
            f"{provider.package} brings; --device cpu works here"
        )
    return [provider]


def _make_session_options(threads: int) -> Any:
    """Return the options of a session that are the same for every provider."""
    settings = _import_onnxruntime().SessionOptions()
    # its own choice counts the machine's cores instead, and ties each thread to one, whatever else runs there
    settings.intra_op_num_threads = threads or count_physical_cores()
    _limit_spinning(settings)
    settings.log_severity_level = 4  # its errors are raised too, and the lines of a log may have to be JSON
    # for bundles of earlier versions, whose int8 weights have all eight bits: without VNNI their products with uint8
    # are added up in 16 bits and clipped, which changes what a network says; this takes uint8 times uint8 on such
    # processors, and nothing else on others (onnxruntime_session_options_config_keys.h)
    settings.add_session_config_entry("session.x64quantprecision", "1")
    return settings


def _limit_spinning(settings: Any) -> None:
    """Let the threads of a session wait actively no longer than it takes until the next operator of a run begins."""
    # by default they spin for milliseconds, and take the cores from decoding, from other runs and from other programs
    if _can_bound_spinning():
        settings.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_MICROSECONDS))
    else:
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")


def _can_bound_spinning() -> bool:
    """Return whether this ONNX Runtime knows a duration for spinning: earlier ones would ignore it, and spin on."""
    major, minor = _import_onnxruntime().__version__.split(".")[:2]
    return (int(major), int(minor)) >= (1, 26)


def _import_onnxruntime() -> Any:
    """Return the package, which is imported when it is needed: a bundle is converted without it."""
    if find_spec("onnxruntime") is None:
        raise BackendError(f"onnxruntime is not installed; {build_install_command('serve')} installs it")
    import onnxruntime

    return onnxruntime
