"""One suite for every backend: a new device is a new entry in ``present_devices``."""

import numpy as np
import pytest

from ehm import backends
from ehm.config import TrainConfig
from ehm.errors import BackendError


def present_devices():
    """Devices of this machine; the others are reported as absent, never as passed."""
    present = []
    for device in backends.devices():
        try:
            backends.get(device)
        except BackendError:
            continue
        present.append(device)
    return present


@pytest.fixture(params=present_devices())
def backend(request):
    return backends.get(request.param)


@pytest.fixture
def config():
    """Make a tiny run, with dotted overrides as keywords."""

    def make(**sections):
        values = {
            "encoder": "vit_tiny",
            "image_size": [32, 48],
            "patch_size": 8,
            "model": {"width": 24, "depth": 3, "heads": 3, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2},
            "mask": {"blocks": 2},
            "optim": {"batch_size": 6, "epochs": 2, "warmup_epochs": 0, "dtype": "float32"},
        }
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section}
        return TrainConfig.model_validate(values)

    return make


@pytest.fixture
def batch():
    """Six images (6, 32, 48, 3) and masks (6, 24) that hide 18 patches each."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 32, 48, 3), dtype=np.uint8)
    mask = np.zeros((6, 24), bool)
    for row in mask:
        row[rng.permutation(24)[:18]] = True
    return images, mask
