"""The exported encoder: ONNX Runtime's answer, on the accelerator if it can, beside the framework's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ehm.backends.base import Backend
from ehm.deploy.bundle.preprocessing import normalise_pixels
from ehm.deploy.export import export
from ehm.deploy.export.parity import TOLERANCE
from ehm.deploy.predict.predictor import Predictor
from ehm.deploy.predict.runtime import list_installed_devices
from ehm.installation import build_install_command
from ehm.storage.checkpoint import save_checkpoint
from ehm.verification.cases import Case, create_learner, describe_run, draw_images, load_weights
from ehm.verification.check import Measurement, SkipError

__all__ = ["check_export", "choose_runtime_device"]

_NEEDED = ("onnx", "onnxruntime")
_DEVICE_TOLERANCE = 5e-3
"""Largest error beside the training device's own features, which may multiply in TF32 or HF32."""


def check_export(backend: Backend, device: str, kind: str) -> Iterator[Measurement]:
    """Export an encoder, which compares the file with the framework on the CPU, and compare it with ``backend`` too."""
    for package in _NEEDED:
        if find_spec(package) is None:
            raise SkipError(f"{package} is not installed; {build_install_command('export')} installs it")
    config = Case(kind, 197, 64).make_config()
    learner = create_learner(backend, config)
    load_weights(learner)
    images = draw_images(config)
    expected = learner.compute_features(images)
    runtime_device = choose_runtime_device(device)
    with TemporaryDirectory() as folder:
        checkpoint = save_checkpoint(Path(folder) / "run", learner.state(), describe_run(config))
        with redirect_stdout(StringIO()):  # what export prints names the folder
            bundle = export(checkpoint, head="features", device=runtime_device, out=Path(folder) / "bundle")
        predictor = Predictor(bundle, runtime_device)
        parity = predictor.manifest.parity
        preprocessing = predictor.manifest.preprocessing
        inputs = np.stack([normalise_pixels(image, preprocessing) for image in images])
        (found,) = predictor.run(inputs).values()
    runtime = predictor.provider.removesuffix("ExecutionProvider")
    yield Measurement("file", parity.max_relative or 0.0, TOLERANCE, f"ONNX Runtime ({runtime}) and {parity.reference}")
    size = float(np.sqrt(np.square(expected.astype(np.float64)).mean()))
    error = float(np.abs(found.astype(np.float64) - expected).max()) / size
    yield Measurement("features", error, _DEVICE_TOLERANCE, f"ONNX Runtime ({runtime}) and {backend.name}")


def choose_runtime_device(device: str) -> str:
    """Return the device of ONNX Runtime that is ``device``, or the CPU if its package for that is not installed."""
    kind = device.partition(":")[0]
    if device.startswith("mindspore") and device.endswith("ascend"):
        kind = "npu"
    return kind if kind in list_installed_devices() else "cpu"
