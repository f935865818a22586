"""Offline models of bundles: opened on an NPU, and compared with the ONNX file that they were made of.

ATC may compute in less than float32, and its mixed precisions have ruined encoders without a word, so that no file is
used that was never compared. The images are those on which the export compares the ONNX file with the framework.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import OFFLINE_MODEL, Ascend, OfflineParity, Precision
from ehm.deploy.predict.ascend_device import open_device
from ehm.deploy.predict.comparison import compute_cosines
from ehm.deploy.predict.offline_model import OfflineSession
from ehm.deploy.predict.parity_images import make_inputs
from ehm.deploy.predict.runtime import OFFLINE_DEVICE, open_session
from ehm.errors import BackendError, ConfigError, ExportError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["compare_offline", "measure_offline", "names_offline_model", "open_offline"]


def names_offline_model(device: str) -> bool:
    """Return whether ``device`` runs a bundle's offline model."""
    return device.partition(":")[0] == OFFLINE_DEVICE


def open_offline(bundle: Bundle, device: str, precision: Precision = "float32") -> OfflineSession:
    """Load the offline model of ``bundle`` on the NPU that ``device`` names.

    If the manifest has no comparison of that file, it is compared here. Raises ConfigError for another ``precision``
    than float32, BackendError if there is no such NPU, ExportError if there is no offline model, if it cannot be
    loaded or if its outputs are too far from those of the ONNX file.
    """
    if precision != "float32":
        raise ConfigError(f"--precision {precision}: {OFFLINE_MODEL} has the precision that ATC gave it; leave it out")
    _, colon, number = device.partition(":")
    if colon and not number.isdecimal():
        raise BackendError(f"--device {device}: expected om, or om:1 for the second NPU")
    path = bundle.offline_model()
    session = OfflineSession(open_device(int(number or 0)), path, bundle.manifest)
    record = bundle.manifest.ascend
    if record is None or record.parity is None or OFFLINE_MODEL not in bundle.manifest.files:
        compare_offline(bundle, session)
    return session


def compare_offline(bundle: Bundle, session: OfflineSession) -> OfflineParity:
    """Compare the offline model with the ONNX file; raises ExportError if a cosine is too small."""
    least = (bundle.manifest.ascend or Ascend()).cosine
    parity = measure_offline(bundle, session)
    if parity.cosine < least:
        raise ExportError(
            f"{bundle.path / OFFLINE_MODEL}: its {parity.output} have a cosine of {parity.cosine:.6f} to those of "
            f"{bundle.model().name}, and at least {least:g} is asked for (ascend.cosine): it was made of another "
            "network, or ATC computes in too low a precision"
        )
    return parity


def measure_offline(bundle: Bundle, session: OfflineSession) -> OfflineParity:
    """Run the offline model, and the ONNX file on the CPU, on the same images, and return the smallest cosine."""
    manifest = bundle.manifest
    reference = open_session(bundle.model())
    names = manifest.output_names
    count = 0
    smallest = dict.fromkeys(names, 1.0)
    for _, inputs, _ in make_inputs(manifest.preprocessing):
        feeds = {manifest.input.name: inputs}
        count += len(inputs)
        for name, expected, found in zip(names, reference.run(names, feeds), session.run(names, feeds), strict=True):
            smallest[name] = min(smallest[name], _smallest_cosine(expected, found))
    worst = min(smallest, key=lambda name: smallest[name])
    return OfflineParity(chip=session.chip, images=count, cosine=smallest[worst], output=worst)


def _smallest_cosine(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Return the smallest cosine between rows (B, ...); -1 if a value is not finite, 1 for rows of zeros in both."""
    if not np.isfinite(found).all():
        return -1.0
    is_zero = [not values.any() for values in np.concatenate([expected, found], axis=1)]
    return float(np.where(is_zero, 1.0, compute_cosines(expected, found)).min())
