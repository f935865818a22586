"""One suite for every backend and device: what is present is run, what is absent is named."""

import numpy as np
import pytest

from ehm import backends
from ehm.config import TrainConfig
from ehm.errors import BackendError


def look():
    """Devices of this machine, and why others are absent."""
    present, absent = [], {}
    for device in backends.list_devices():
        try:
            info = backends.get(device).describe_device()
            present.append(device)
            assert info.name == device
        except BackendError as error:
            absent[device] = str(error)
    return present, absent


PRESENT, ABSENT = look()


def pytest_terminal_summary(terminalreporter):
    """Nobody should take an absent device for one that has passed."""
    terminalreporter.write_line(f"conformance: ran on {', '.join(PRESENT)}")
    for device, reason in ABSENT.items():
        terminalreporter.write_line(f"conformance: {device} is absent: {reason}")


@pytest.fixture(params=PRESENT)
def backend(request):
    return backends.get(request.param)


@pytest.fixture
def config():
    """Make a tiny run, with what overrides it, section by section, as keywords."""

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
            values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
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
