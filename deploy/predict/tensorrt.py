"""Networks of bundles on ONNX Runtime's TensorRT provider: what its engines take, and where they are kept.

TensorRT compiles a network for one kind of GPU, which takes minutes, and for a range of batch sizes. The engine is kept
in a folder of its own for each network and version of ONNX Runtime: its name there does not depend on the weights, so
that a replaced bundle would go on as the old one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import BatchRange, Manifest, Precision
from ehm.deploy.predict.runtime import Session, check_device, open_session
from ehm.errors import ConfigError

__all__ = ["CACHE_VARIABLE", "names_tensorrt", "open_tensorrt"]

CACHE_VARIABLE = "EHM_TENSORRT_CACHE"
"""The environment variable that names the folder for engines."""

_LOG = logging.getLogger(__name__)


def names_tensorrt(device: str) -> bool:
    """Return whether ``device`` runs networks by TensorRT."""
    return device.partition(":")[0] == "tensorrt"


def open_tensorrt(bundle: Bundle, device: str, precision: Precision, threads: int = 0) -> Session:
    """Load a network of ``bundle``, which compiles it if no engine is kept; errors as of `open_session`.

    Raises ConfigError for int8: TensorRT takes int8 with zero points of 0, and the bundle's have others.
    """
    if precision == "int8":
        raise ConfigError(
            f"--device {device} --precision int8: TensorRT takes no int8 with zero points, which the bundle's has; "
            "--precision float16 is its fastest here"
        )
    check_device(device)
    with suppress(ImportError, OSError):  # whatever is missing, ONNX Runtime says so
        # the libraries of the package lie where only the package itself finds them
        import_module("tensorrt")
    options = _keep_engines(bundle, precision)
    batches = bundle.manifest.batches
    if not _has_one_size(bundle.manifest):
        return open_session(bundle.model(precision), device, threads, precision, options)
    options |= _describe_profile(bundle.manifest, batches)
    return _CutSession(open_session(bundle.model(precision), device, threads, precision, options), batches.largest)


class _CutSession:
    """A session that takes batches of any size, for one that takes up to ``largest`` images."""

    def __init__(self, session: Session, largest: int) -> None:
        self._session = session
        self._largest = largest

    def get_providers(self) -> list[str]:
        """Return the names of the session's providers."""
        return self._session.get_providers()

    def run(self, names: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[Any]:
        """Return the outputs of those names for one input (B, ...), which runs in several batches if it is large."""
        ((name, images),) = feeds.items()
        parts = []
        for start in range(0, len(images), self._largest):
            parts.append(self._session.run(names, {name: images[start : start + self._largest]}))
        return [np.concatenate(values) for values in zip(*parts, strict=True)] if len(parts) > 1 else parts[0]


def _has_one_size(manifest: Manifest) -> bool:
    """Return whether the batch, and nothing else, may have several sizes; an engine then needs to be built once."""
    batch, *sizes = manifest.input.shape
    return isinstance(batch, str) and not any(isinstance(size, str) for size in sizes)


def _describe_profile(manifest: Manifest, batches: BatchRange) -> dict[str, str]:
    """Return the options for the smallest, the usual and the largest input that an engine takes."""
    sizes = "x".join(map(str, manifest.input.shape[1:]))
    options = {}
    for word, batch in (("min", 1), ("opt", batches.usual), ("max", batches.largest)):
        options[f"trt_profile_{word}_shapes"] = f"{manifest.input.name}:{batch}x{sizes}"
    return options


def _keep_engines(bundle: Bundle, precision: Precision) -> dict[str, str]:
    """Return the options for the folder of the engines; none, and a warning, if it cannot be made."""
    import onnxruntime

    folder = _find_cache_folder() / f"{bundle.version(precision)}-onnxruntime-{onnxruntime.__version__}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _LOG.warning(
            "%s: engines of TensorRT are not kept, and are built at every start: %s; %s names another folder",
            folder,
            error.strerror,
            CACHE_VARIABLE,
        )
        return {}
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
    }


def _find_cache_folder() -> Path:
    """Return the folder for the engines of all networks."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ehm" / "tensorrt"
