"""The promises of the simulated NPU, one function each; as a script it prints the names of those that fail, as JSON.

It runs in a process of its own, because a device cannot be uninstalled; ``tests/unit/backends/test_simulated_npu.py``
starts it.
"""

import copy
import json
import os
import traceback
import warnings

import torch
import torch_npu
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch_npu import record

NPU = torch.device("npu")
FILE = os.path.basename(__file__)


def raises(error, words, function):
    try:
        function()
    except error as found:
        missing = [word for word in words if word not in str(found)]
        if missing:
            raise AssertionError(f"{missing} not in: {found}") from found
        return
    raise AssertionError(f"no {error.__name__} with {words}")


def same(ours, reference):
    assert ours.device.type == "npu"
    assert reference.device.type == "cpu"
    torch.testing.assert_close(ours.cpu(), reference, rtol=0, atol=0)


def network():
    torch.manual_seed(0)
    head = [nn.Flatten(), nn.LayerNorm(288), nn.Linear(288, 16), nn.GELU(), nn.Linear(16, 4)]
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *head)


def inputs(device):
    torch.manual_seed(1)
    return torch.randn(6, 3, 8, 8).to(device), torch.arange(6).remainder(4).to(device)


def train(device, dtype=torch.float32, steps=4, explode=None, **options):
    """Losses, final parameters and loss scales of a few steps."""
    model, (images, labels) = network().to(device), inputs(device)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, **options)
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16, init_scale=1024.0)
    losses, scales = [], []
    for step in range(steps):
        optimizer.zero_grad()
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(checkpoint(model, images, use_reentrant=False), labels)
        scaler.scale(loss * (float("inf") if step == explode else 1)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in model.parameters()], 0.1)
        losses.append(loss.item())
        scales.append(scaler.get_scale())
    return losses, [*model.parameters(), *average.parameters()], scales


def devices_do_not_mix():
    ours, host = torch.ones(2, 2, device=NPU), torch.ones(2, 2)
    for function in (
        lambda: ours + host,
        lambda: host + ours,
        lambda: ours @ host,
        lambda: F.linear(ours, host),
        lambda: torch.cat([ours, host]),
        lambda: torch.where(host > 0, ours, ours),
        lambda: host.add_(ours),
        lambda: host.sum().add_(ours.sum()),
        lambda: torch.add(ours, ours, out=host),
        lambda: network()(inputs(NPU)[0]),
    ):
        raises(RuntimeError, ["Expected all tensors to be on the same device"], function)
    same(ours * torch.tensor(3.0), host * 3)  # a single value may come from the host, as everywhere
    raises(TypeError, ["npu"], ours.numpy)


def float64_is_refused():
    ours = torch.ones(2, device=NPU)
    for function in (
        lambda: torch.ones(2, device=NPU, dtype=torch.float64),
        lambda: torch.ones(2, dtype=torch.float64).to(NPU),
        lambda: ours.double(),
        lambda: ours.cumsum(0, dtype=torch.float64),
        lambda: torch.randn(2, dtype=torch.float64, device=NPU),
    ):
        raises(RuntimeError, ["float64 on the NPU: aten::", f"{FILE}:"], function)
    same(ours * 2.5 + 1, torch.ones(2) * 2.5 + 1)
    assert ours.sum().double().reciprocal().float().item() == 0.5  # as the gradient scaler does


def operators_compute_as_the_cpu_does():
    def run(device):
        torch.manual_seed(2)
        x, w, q = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 2, 2), torch.randn(2, 2, 5, 8)
        x, w, q = (value.to(device).requires_grad_() for value in (x, w, q))
        y = F.layer_norm(F.gelu(F.conv2d(x, w)), [7, 7]).softmax(-1)
        order = y.argsort(dim=-1)
        y = y.gather(-1, order[..., :4]).cumsum(-1) + y.topk(4).values
        z = F.scaled_dot_product_attention(q, q * 2, q + 1)
        mask = torch.ones(5, 5, device=device).tril() > 0
        z = z + F.scaled_dot_product_attention(q, q, q, attn_mask=mask)
        z = z + torch.einsum("bhid,bhjd->bhij", q, q) @ q
        (y.square().mean() + z.std()).backward()
        return [y.detach(), z.detach(), x.grad, w.grad, q.grad]

    for ours, reference in zip(run("npu"), run("cpu"), strict=True):
        assert ours.device == torch.device("npu", 0)
        torch.testing.assert_close(ours.cpu(), reference, rtol=1e-5, atol=1e-6)


def training_is_that_of_the_cpu():
    for options in ({}, {"foreach": True}, {"foreach": False}, {"fused": True}):
        losses, parameters, _ = train("npu", **options)
        expected, references, _ = train("cpu", **options)
        assert losses == expected, (options, losses, expected)
        assert losses[-1] < losses[0], (options, losses)
        for ours, reference in zip(parameters, references, strict=True):
            same(ours.detach(), reference.detach())


def autocast_casts_what_it_should():
    for dtype in (torch.bfloat16, torch.float16):
        model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)).to(NPU)
        x = torch.randn(2, 8, device=NPU)
        before = record.calls.copy()
        with torch.autocast("npu", dtype):
            low, twice = model[0](x), model[0](x)
            casts = record.calls - before
            wide = model[1](low)
            assert (low.dtype, wide.dtype, low.softmax(-1).dtype) == (dtype, torch.float32, torch.float32)
            assert torch.cat([low, wide]).dtype == torch.float32
            assert (x @ x.t()).dtype == dtype
            assert (low + low).dtype == dtype
        copies = sum(count for (name, _, _), count in casts.items() if name == "copy_")
        assert copies == 4, copies  # the input each time, weight and bias once for both
        same((low - twice).detach(), torch.zeros(2, 8, dtype=dtype))
        wide.sum().backward()
        assert model[0].weight.grad.dtype == torch.float32
    with torch.autocast("npu", torch.bfloat16):
        ours = F.linear(inputs(NPU)[0].flatten(1)[:, :64], torch.ones(3, 64, device=NPU))
    with torch.autocast("cpu", torch.bfloat16):
        same(ours, F.linear(inputs("cpu")[0].flatten(1)[:, :64], torch.ones(3, 64)))


def half_precision_trains_and_the_scaler_skips_an_infinite_step():
    ours, reference = train("npu", torch.float16)[0], train("cpu", torch.float16)[0]
    torch.testing.assert_close(ours, reference, rtol=5e-3, atol=0)
    assert ours[-1] < ours[0]
    calm, exploded = train("npu", torch.float16, steps=1), train("npu", torch.float16, steps=2, explode=1)
    assert exploded[2] == [1024.0, 512.0]
    for before, after in zip(calm[1][:8], exploded[1][:8], strict=True):
        assert torch.equal(before, after)


def random_numbers_have_their_own_stream():
    torch.manual_seed(3)
    first, second = torch.rand(5, device=NPU), torch.randn(5, device=NPU)
    same(first, torch.rand(5))  # each stream was seeded, and goes its own way
    same(second, torch.randn(5))
    state = torch.npu.get_rng_state()
    following = torch.randn(3, device=NPU)
    torch.npu.set_rng_state(state)
    assert torch.equal(following, torch.randn(3, device=NPU))
    before = torch.get_rng_state(), torch.npu.get_rng_state()
    with torch.random.fork_rng([NPU], device_type="npu"):
        torch.manual_seed(9)
        torch.rand(2, device=NPU).bernoulli_(0.5)
    assert torch.equal(before[0], torch.get_rng_state())
    assert torch.equal(before[1], torch.npu.get_rng_state())

    generator = torch.Generator("npu").manual_seed(4)
    assert generator.device == torch.device("npu", 0)
    assert torch.Generator().device == torch.device("cpu")
    same(torch.randn(3, device=NPU, generator=generator), torch.randn(3, generator=torch.Generator().manual_seed(4)))
    wrong = torch.Generator()
    raises(RuntimeError, ["generator"], lambda: torch.randn(3, device=NPU, generator=wrong))

    x = torch.ones(100, device=NPU, requires_grad=True)
    dropped = checkpoint(lambda value: F.dropout(value, 0.5) * value, x, use_reentrant=False)
    dropped.sum().backward()
    assert torch.equal(x.grad != 0, dropped != 0)  # computed again with the same numbers


def views_share_memory_and_copies_cross():
    x = torch.zeros(2, 3, device=NPU)
    x[0].add_(5)
    x.t()[1].mul_(2)
    same(x, torch.tensor([[5.0, 10, 5], [0, 0, 0]]))
    out = torch.empty(0, device=NPU)
    torch.add(x, 1, out=out)
    same(out, x.cpu() + 1)
    same(out.detach().resize_(2), torch.tensor([6.0, 11]))
    pinned = torch.arange(6.0).pin_memory()
    assert pinned.is_pinned()
    assert not torch.ones(2).is_pinned()
    ours = pinned.to(NPU, non_blocking=True)
    back = torch.empty(6, pin_memory=True)
    back.copy_(ours, non_blocking=True)
    assert back.is_pinned()
    assert back.tolist() == list(range(6))
    assert ours.bfloat16().cpu().dtype == torch.bfloat16
    assert ours.tolist() == back.tolist()
    same(ours[torch.tensor([1, 3], device=NPU)], torch.tensor([1.0, 3]))
    assert repr(ours[:2]) == "tensor([0., 1.], device='npu:0')"


def torch_knows_the_device():
    accelerator = torch.accelerator
    assert accelerator.current_accelerator(check_available=True) == NPU
    assert torch.get_device_module(NPU) is torch.npu
    assert accelerator.device_count() == torch.npu.device_count() == 2  # as the environment says
    torch.npu.set_device("npu:1")
    assert accelerator.current_device_index() == torch.npu.current_device() == 0  # where every tensor is
    raises(RuntimeError, ["invalid device ordinal npu:2", "has 2"], lambda: torch.npu.set_device("npu:2"))
    raises(RuntimeError, ["invalid device ordinal npu:2"], lambda: torch.ones(1, device="npu:2"))
    assert torch.ones(1, device="npu:1").device == torch.device("npu", 0)
    assert "910B" in torch.npu.get_device_name(NPU)
    assert torch.npu.is_bf16_supported()
    start, end = torch.npu.Event(enable_timing=True), torch.npu.Event(enable_timing=True)
    start.record()
    end.record()
    end.synchronize()
    assert start.elapsed_time(end) >= 0
    assert torch_npu.__version__ == torch.__version__.partition("+")[0]  # raise both together


def memory_is_counted():
    before = torch.npu.memory_allocated()
    torch.npu.reset_peak_memory_stats()
    large = torch.zeros(1 << 20, device=NPU)
    view = large.view(1024, -1)[1:]
    assert torch.npu.memory_allocated() - before == 4 << 20
    del large
    assert torch.npu.memory_allocated() - before == 4 << 20  # the view needs it
    del view
    assert torch.npu.memory_allocated() == before
    assert torch.npu.max_memory_allocated() == torch.accelerator.max_memory_allocated() == before + (4 << 20)
    free, total = torch.npu.mem_get_info(NPU)
    assert total - free == before


def operators_are_recorded_with_dtypes_and_place():
    x = torch.ones(3, 3, device=NPU, requires_grad=True)
    before = record.calls.copy()
    y = x.bfloat16() @ x.bfloat16()
    y.sum().backward()
    F.scaled_dot_product_attention(*[torch.ones(1, 1, 2, 8, device=NPU)] * 3)
    found = set(record.calls - before)
    line = operators_are_recorded_with_dtypes_and_place.__code__.co_firstlineno + 3
    place = next(site for name, dtypes, site in found if (name, dtypes) == ("mm", ("bfloat16",)) and FILE in site)
    assert place.endswith(f"{FILE}:{line}"), place
    assert ("mm", ("bfloat16",), "backward (MmBackward0)") in found
    assert {"scaled_dot_product_attention"} <= {name for name, _, _ in found}
    assert "_softmax" not in {name for name, _, _ in found}


def what_torch_npu_lacks_warns_or_raises():
    x, target = torch.ones(3, device=NPU), torch.zeros(3, device=NPU)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        same(F.huber_loss(x, target), torch.tensor(0.5))
    text = str(caught[0].message)
    assert "aten::huber_loss" in text
    assert "fall back to run on the CPU" in text
    assert f"{FILE}:" in text
    record.STRICT = True
    try:
        raises(NotImplementedError, ["aten::poisson", f"{FILE}:"], lambda: torch.poisson(x))
    finally:
        record.STRICT = False


def main():
    found = {}
    for name, function in list(globals().items()):
        if getattr(function, "__module__", "") == __name__ and name not in HELPERS:
            try:
                function()
                found[name] = None
            except Exception:
                found[name] = traceback.format_exc()
    print(json.dumps(found))


HELPERS = {"raises", "same", "network", "inputs", "train", "main"}

if __name__ == "__main__":
    main()
