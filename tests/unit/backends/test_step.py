"""The step around a loss: what float16 does with a loss that overflows, and what cannot be combined."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

from ehm.backends.base import ALONE, OneProcess
from ehm.backends.torch import TorchBackend
from ehm.backends.torch.engine import distributed, step
from ehm.backends.torch.engine.devices import FACTS, DeviceFacts, allow_tf32
from ehm.backends.torch.engine.distributed import wrap_model
from ehm.backends.torch.engine.step import Training
from ehm.config import OptimConfig, RunConfig, TrainConfig
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


@pytest.fixture
def graphs(monkeypatch):
    """The number of nodes of every graph that torch compiles, by a compiler that does what inductor begins with."""
    compiled = []

    def compile_graph(graph, inputs):
        compiled.append(len(graph.graph.nodes))
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setitem(FACTS, "cpu", replace(FACTS["cpu"], compiler=compile_graph))
    torch._dynamo.reset()
    yield compiled
    torch._dynamo.reset()


class Stack(torch.nn.Module):
    """Four blocks, 4 MB of parameters: more than DDP's first bucket."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.GELU()) for _ in range(4)
        )

    def forward(self, values):
        for block in self.blocks:
            values = block(values)
        return values


def compute_gradients(module, parameters):
    for _ in range(2):
        module(torch.ones(2, 512)).square().sum().backward()
    return [parameter.grad for parameter in parameters]


def test_a_compiled_step_sends_gradients_bucket_by_bucket(group, graphs):
    expected = compute_gradients(plain := Stack(), plain.parameters())
    model = Stack()
    step._compile(model, CPU, sharded=False)
    wrapped = wrap_model(model, "ddp", OneProcess(size=2), CPU)
    torch.testing.assert_close(compute_gradients(wrapped, model.parameters()), expected)
    assert len(graphs) > 1  # a graph for all of it would give all gradients at its end


# torch 2.14 looks at .grad of every input while it compiles, and warns about what is no leaf: gathered parameters
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("recomputes", [False, True])
def test_a_sharded_model_is_compiled_block_by_block(group, graphs, recomputes):
    expected = compute_gradients(plain := Stack(), plain.parameters())
    model = Stack()
    for block in model.blocks if recomputes else ():  # as recompute_activations does
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    step._compile(model, CPU, sharded=True)
    distributed._shard_model(model, ALONE, CPU, torch.float32)
    found = [gradient.full_tensor() for gradient in compute_gradients(model, model.parameters())]
    torch.testing.assert_close(found, expected)
    assert graphs


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
    step.set_deterministic(True)
    assert torch.are_deterministic_algorithms_enabled()
    step.set_deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_float32_products_are_rounded_only_if_the_run_says_so(monkeypatch):
    allowed = []
    monkeypatch.setitem(FACTS, "cpu", replace(FACTS["cpu"], allow_tf32=allowed.append))
    for wanted in (True, False):
        values = {"encoder": "vit_tiny", "model": {"depth": 1, "decoder_depth": 1}, "optim": {"tf32": wanted}}
        TorchBackend(CPU, ALONE).create_learner(TrainConfig.model_validate(values))
    assert allowed == [True, False]
    for wanted, precision in ((True, "high"), (False, "highest")):
        allow_tf32(torch.device("cuda"), wanted)
        assert torch.get_float32_matmul_precision() == precision


def test_a_missing_compiler_is_said_before_training(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BackendError, match=r"run\.compile: torch needs a C\+\+ compiler"):
        make(run={"compile": True})
