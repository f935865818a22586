"""Devices by name: ehm's own, other packages', absent ones and processes that do not fit."""

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_learner import FakeLearner

from ehm import backends, plugins
from ehm.backends.base import ALONE
from ehm.backends.torch.engine import devices, distributed
from ehm.config import MaskConfig
from ehm.errors import BackendError
from ehm.masking import make_masker
from ehm.training.pretrain import train

TESTS = Path(__file__).parents[2]


def test_another_package_adds_a_backend(images, tmp_path):
    """tests/example_backend is such a package, on the search path as if it were installed."""
    path = os.pathsep.join([str(TESTS / "example_backend"), str(TESTS)])
    settings = ["encoder=vit_tiny", "image_size=32", "patch_size=8", "optim.batch_size=4", "optim.epochs=2",
                "optim.warmup_epochs=0", "data.workers=0", f"data.source={images}"]  # fmt: skip
    command = [sys.executable, "-m", "ehm.cli", "train", "--device", "numpy", "--out", str(tmp_path / "out")]
    command += [f"--set={setting}" for setting in settings]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "device fake (NumPy)" in done.stdout
    assert (tmp_path / "out/encoder.safetensors").is_file()


def claim(monkeypatch, name, value):
    monkeypatch.setattr(plugins, "entry_points", lambda group: [EntryPoint(name, value, group)])


def test_two_packages_cannot_claim_one_device(monkeypatch):
    claim(monkeypatch, "cuda", "nowhere:backend")
    with pytest.raises(
        BackendError, match=r"device cuda is claimed twice, by ehm.backends.torch:backend and by nowhere"
    ):
        backends.get("cpu")


@pytest.mark.parametrize(("setting", "value"), [("true", "true"), ("false", None)])
def test_collectives_are_asked_for_a_fixed_order_before_processes_join(monkeypatch, tmp_path, images, setting, value):
    monkeypatch.delenv("HCCL_DETERMINISTIC", raising=False)

    def join(device):
        raise BackendError(f"joins with {os.environ.get('HCCL_DETERMINISTIC')}")

    monkeypatch.setitem(sys.modules, "joining", SimpleNamespace(backend=join))
    claim(monkeypatch, "joining", "joining:backend")
    overrides = [f"data.source={images}", f"run.deterministic={setting}"]
    with pytest.raises(BackendError, match=f"joins with {value}"):
        train(device="joining", overrides=overrides, out=tmp_path)
    # it was set in this process, of which monkeypatch knows nothing
    os.environ.pop("HCCL_DETERMINISTIC", None)


def test_a_package_that_cannot_be_loaded_is_named(monkeypatch):
    claim(monkeypatch, "tpu", "nowhere:backend")
    with pytest.raises(
        BackendError, match=r"--device tpu:0: nowhere:backend cannot be loaded: No module named .nowher"
    ):
        backends.get("tpu:0")
    claim(monkeypatch, "tpu", "ehm.backends:nothing")
    with pytest.raises(BackendError, match=r"--device tpu: ehm.backends:nothing cannot be loaded: .*nothing"):
        backends.get("tpu")


def test_unknown_devices_are_told_the_known_ones(monkeypatch):
    claim(monkeypatch, "tpu", "nowhere:backend")
    with pytest.raises(BackendError, match="--device xpu: unknown; known are auto, cpu, cuda, npu, mindspore, tpu"):
        backends.get("xpu")


def test_npu_without_its_plug_in_says_what_to_install(monkeypatch):
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"^--device npu: .*torch-npu"):
        devices.choose_device("npu")


def test_a_plug_in_that_fails_gives_its_reason(monkeypatch):
    def fail(name):
        raise ImportError("libhccl.so: cannot open shared object file")

    monkeypatch.setattr(devices, "find_spec", lambda name: True)
    monkeypatch.setattr(devices, "import_module", fail)
    with pytest.raises(BackendError, match=r"^--device npu: .*CANN"):
        devices.choose_device("npu")
    assert devices.choose_device("auto").type in devices.FACTS  # goes on without it
    assert devices.choose_device("cpu") == torch.device("cpu")  # does not try


class Accelerator:
    """A machine with two devices of the kind ``cuda``."""

    def __init__(self, monkeypatch):
        self.chosen = None
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        # without parameters, as in torch 2.6
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
        monkeypatch.setattr(distributed, "get_device_module", lambda device: self)

    def set_device(self, device):
        self.chosen = device


@pytest.mark.parametrize(("device", "reason"), [("cuda:2", "there are 2, numbered from 0"), ("cuda:x", "cuda:N")])
def test_numbers_of_devices_are_checked(monkeypatch, device, reason):
    Accelerator(monkeypatch)
    with pytest.raises(BackendError, match=f"--device {device}: .*{reason}"):
        devices.choose_device(device)


def test_auto_takes_the_accelerator(monkeypatch):
    Accelerator(monkeypatch)
    assert devices.choose_device("auto") == torch.device("cuda")


def test_a_process_alone_takes_the_device_it_is_given(monkeypatch):
    machine = Accelerator(monkeypatch)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert distributed.join_processes(torch.device("cuda:1")) == (torch.device("cuda:1"), ALONE)
    assert distributed.join_processes(torch.device("cuda")) == (torch.device("cuda:0"), ALONE)
    assert machine.chosen == torch.device("cuda:0")
    assert distributed.join_processes(torch.device("cpu")) == (torch.device("cpu"), ALONE)


@pytest.mark.parametrize(
    ("device", "environment", "reason"),
    [
        (
            "cpu",
            {"RANK": "0"},
            "WORLD_SIZE is 4, but LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT is not set",
        ),
        (
            "cuda",
            {"LOCAL_RANK": "2"},
            r"process 2 of this machine has none: it has 2 \(CUDA_VISIBLE_DEVICES may hide",
        ),
        ("cuda:1", {}, "torchrun gives every process a device of its own; use --device cuda"),
    ],
)
def test_processes_that_do_not_fit_are_told_why(monkeypatch, device, environment, reason):
    Accelerator(monkeypatch)
    whole = {"RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in {"WORLD_SIZE": "4", **(environment if device == "cpu" else whole | environment)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BackendError, match=reason):
        distributed.join_processes(torch.device(device))


def test_a_backend_without_trees_on_its_device_says_so():
    masker = make_masker("evolved", MaskConfig(), (2, 2), build="device")
    config = SimpleNamespace(spec=SimpleNamespace(patches=4))
    batch = FakeLearner(config).prepare_batch(np.zeros((1, 2, 2, 3), np.uint8))
    with pytest.raises(BackendError, match=r"mask\.build device: this backend builds no trees on its device; use host"):
        masker(batch, 0.5, (0,))


def test_auto_takes_the_framework_that_is_installed_and_other_devices_are_told_of_it(monkeypatch):
    made = []
    monkeypatch.setattr(backends, "find_spec", lambda name: name if name == "mindspore" else None)
    monkeypatch.setattr(backends, "import_module", lambda name: SimpleNamespace(backend=made.append, __name__=name))
    backends.get()
    backends.get("mindspore:cpu")
    assert made == ["auto", "mindspore:cpu"]
    with pytest.raises(BackendError, match=r"--device npu: torch is not installed; .*, or --device mindspore takes"):
        backends.get("npu")
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"torch is not installed; pip install .*\[torch\]' installs it$"):
        backends.get()
