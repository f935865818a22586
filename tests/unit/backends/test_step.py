"""The step around a loss: what float16 does with a loss that overflows, and what cannot be combined."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from ehm.backends.base import ALONE, OneProcess
from ehm.backends.torch.engine import distributed
from ehm.backends.torch.engine import step as module
from ehm.backends.torch.engine.devices import FACTS, DeviceFacts
from ehm.backends.torch.engine.distributed import wrap_model
from ehm.backends.torch.engine.step import Training
from ehm.config import OptimConfig, RunConfig
from ehm.errors import BackendError

CPU = torch.device("cpu")


def make(run=None, processes=ALONE, **optim):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    settings = OptimConfig(batch_size=4, epochs=1, warmup_epochs=0, **optim)
    made = []

    def optimizer(fused):
        made.append(fused)
        groups = [{"params": list(model.parameters()), "lr_scale": 1.0, "decays": False}]
        return torch.optim.AdamW(groups, lr=0.1, fused=fused)

    return model, Training(model, optimizer, settings, RunConfig(**run or {}), CPU, processes), made


def weights(model):
    return model.weight.detach().numpy().copy()


@pytest.mark.parametrize("fused", [True, False])
def test_float16_skips_a_step_that_overflows_and_halves_the_scale(fused, monkeypatch):
    monkeypatch.setitem(FACTS, "cpu", DeviceFacts(("float16",), distributed="gloo", fused_adamw_scales=fused))
    model, training, made = make(dtype="float16", clip_grad=1.0)
    assert made == [True if fused else None]  # with False, torch would loop over single tensors
    before, scale = weights(model), training.state()["scaler/scale"]

    def loss(rows, times=1.0):
        return training.module(torch.ones(4, 3)[rows]).square().mean() * times

    training.step(4, lambda rows: loss(rows, torch.inf), 0.1, 0.0)
    np.testing.assert_array_equal(weights(model), before)
    state = training.state()
    assert state["scaler/scale"] == scale / 2

    metrics = training.step(4, loss, 0.1, 0.0)
    assert np.abs(weights(model) - before).max() == pytest.approx(0.1, rel=1e-3)  # Adam's first step
    exact = loss(slice(0, 4))
    assert torch.isfinite(metrics["loss"])
    assert float(metrics["loss"]) < 1e3  # not scaled
    assert torch.isfinite(exact)

    _, again, _ = make(dtype="float16")
    again.load(training.state())
    assert again.state()["scaler/scale"] == scale / 2
    assert again.state()["scaler/growth_tracker"] == 1


@pytest.fixture
def group():
    """A group of this process alone, which torch's DDP is content with."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_gradients_travel_once_a_step_however_many_parts_it_has(group):
    _, training, _ = make(processes=OneProcess(size=2), dtype="float32", accumulate=4)
    travelled = []

    def count(state, bucket):
        travelled.append(bucket.buffer().clone())
        return _done(bucket.buffer())

    training.module.register_comm_hook(None, count)
    data = torch.randn(4, 3)
    for _ in range(2):
        training.step(4, lambda rows: training.module(data[rows]).square().mean(), 0.0, 0.0)
    assert len(travelled) == 2
    whole = torch.autograd.grad(training.module(data).square().mean(), list(training.module.parameters()))
    torch.testing.assert_close(travelled[1].abs().sum(), torch.cat([g.flatten() for g in whole]).abs().sum())


@pytest.mark.parametrize(("norm", "travel"), [(torch.nn.LayerNorm(3), False), (torch.nn.BatchNorm2d(3), True)])
def test_buffers_travel_before_a_pass_only_if_processes_change_them_differently(group, norm, travel):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), norm)
    model.register_buffer("indices", torch.arange(3))
    wrapped = wrap_model(model, "ddp", OneProcess(size=2), CPU)
    assert wrapped.will_sync_module_buffers() is travel
    assert not distributed._is_own_norm(torch.nn.SyncBatchNorm(3))  # DDP takes it on accelerators alone


def _done(value):
    future = torch.futures.Future()
    future.set_result(value)
    return future


def test_what_cannot_be_combined_is_refused(monkeypatch):
    with pytest.raises(BackendError, match=r"optim\.dtype float16: not with run\.parallel fsdp"):
        make(run={"parallel": "fsdp"}, processes=OneProcess(size=2), dtype="float16")
    monkeypatch.setitem(FACTS, "cpu", DeviceFacts(("float32",), distributed="gloo", compiler=None))
    with pytest.raises(BackendError, match=r"run\.compile: there is no compiler to rely on for cpu"):
        make(run={"compile": True}, dtype="float32")
    with pytest.raises(BackendError, match=r"optim\.dtype float16: not available on cpu, which has float32"):
        make(dtype="float16")


def test_deterministic_mode_is_switched_on_and_off(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    module.set_deterministic(True)
    assert torch.are_deterministic_algorithms_enabled()
    module.set_deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_missing_compiler_is_said_before_training(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BackendError, match=r"run\.compile: torch needs a C\+\+ compiler"):
        make(run={"compile": True})
