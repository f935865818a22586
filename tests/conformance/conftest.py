"""One suite for every backend and device: what is present is run, what is absent is named."""

import numpy as np
import pytest

from ehm import backends
from ehm.config import TrainConfig
from ehm.errors import BackendError

COMPILES = ("mindspore",)
"""Backends whose learners compile a graph for each function and shape, which takes seconds."""


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


def pytest_collection_modifyitems(config, items):
    """Leave out what is marked for the full suite of a backend, unless ``--full`` asks for it."""
    if config.pluginmanager.hasplugin("xdist"):
        group_items(items)
    if config.getoption("full"):
        return
    kept = []
    left_out = []
    for item in items:
        marker = item.get_closest_marker("full_for")
        # A test without parameters is of that backend alone.
        parameters = item.callspec.id.split("-") if hasattr(item, "callspec") else marker and marker.args
        if marker is not None and not set(marker.args).isdisjoint(parameters):
            left_out.append(item)
        else:
            kept.append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


def group_items(items):
    """Keep tests that share learners in one process, if ``--dist loadgroup`` asks for groups."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        group = f"{item.path.name} {parameters.get('objective')} {parameters.get('encoder')}"
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(params=PRESENT)
def backend(request):
    return backends.get(request.param)


@pytest.fixture(scope="session")
def idle_learners():
    """Learners that no test uses now, each with its first state and its attributes, by device and configuration."""
    return {}


@pytest.fixture
def make_learner(request, backend, idle_learners):
    """Make a learner that begins like a new one; where graphs are compiled, it may have those of an earlier test."""
    lent = []

    def make(config):
        if backend.name not in COMPILES:
            return backend.create_learner(config)
        key = config.model_dump_json()
        idle = idle_learners.setdefault(key, [])
        if not idle:
            learner = backend.create_learner(config)
            idle.append((learner, learner.state(), dict(vars(learner))))
        learner, first_state, attributes = idle.pop()
        vars(learner).clear()
        vars(learner).update(attributes)
        learner.load(first_state)
        lent.append((key, (learner, first_state, attributes)))
        return learner

    yield make
    for key, entry in lent:
        idle_learners[key].append(entry)


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
