"""FSDP's blocks in bfloat16: what travels is half as large, and the arithmetic that of autocast on whole parameters."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from ehm.backends.base import ALONE
from ehm.backends.torch.engine import distributed
from ehm.backends.torch.engine.devices import FACTS
from ehm.backends.torch.objectives.mae import MaskedAutoencoder
from ehm.config.encoders import VitSpec

CPU = torch.device("cpu")
# torch warns of operators that write into a model's output, of which there are none
pytestmark = pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view:UserWarning")


@pytest.fixture
def group():
    """A group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def accelerator(monkeypatch):
    """A CPU with the facts of an accelerator, whose autocast computes norms in float32 whatever their weights are."""
    norm = torch.nn.functional.layer_norm

    def compute_in_float32(values, shape, weight, bias, eps):
        return norm(values.float(), shape, weight.float(), bias.float(), eps)

    monkeypatch.setattr(torch.nn.functional, "layer_norm", compute_in_float32)
    monkeypatch.setitem(FACTS, "cpu", replace(FACTS["cpu"], shards_in_step_dtype=True))


def shard(model, dtype=torch.bfloat16):
    distributed._shard_model(model, ALONE, CPU, dtype)
    return model


def compute_gradients(model):
    """The loss of a step and all gradients, whole; the type of each block's input and of its weights meanwhile."""
    types = set()
    for block in [*model.blocks, *model.decoder_blocks]:
        block.norm1.register_forward_pre_hook(lambda module, inputs: types.add((inputs[0].dtype, module.weight.dtype)))
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 32, 32, generator=generator)
    order = torch.rand(2, 16, generator=generator).argsort(1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images, order[:, :8], order[:, 8:], order.argsort(1))
    loss.backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradients[name] = distributed.gather_tensor(parameter.grad)
    return loss.detach(), gradients, types


def make_model():
    torch.manual_seed(0)
    return MaskedAutoencoder(VitSpec((32, 32), 8, width=24, depth=2, heads=2), 16, 2, 2)


def test_blocks_travel_in_bfloat16_and_what_they_add_to_stays_float32(group, accelerator):
    loss, gradients, types = compute_gradients(make_model())
    assert types == {(torch.float32, torch.float32)}
    found_loss, found, found_types = compute_gradients(shard(make_model()))
    assert found_types == {(torch.float32, torch.bfloat16)}
    torch.testing.assert_close(found_loss, loss, rtol=1e-3, atol=0)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert found[name].dtype == torch.float32
        # a few roundings of bfloat16, whose last digit is 0.4 %
        assert (found[name] - gradient).norm() < 0.03 * gradient.norm() + 1e-6, name


def test_a_cpu_gathers_float32(group):
    loss, gradients, _ = compute_gradients(make_model())
    found_loss, found, _ = compute_gradients(shard(make_model()))
    torch.testing.assert_close((found_loss, found), (loss, gradients), rtol=0, atol=0)


def test_blocks_with_running_moments_stay_float32(group, accelerator):
    types = []
    layer = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    model = shard(torch.nn.Sequential(layer))
    layer[1].register_forward_pre_hook(lambda module, inputs: types.append(module.weight.dtype))
    model(torch.randn(2, 3, 4, 4))
    assert types == [torch.float32]
