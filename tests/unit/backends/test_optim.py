"""Weight decay, learning rates of layers, and LARS, against hand-written values and timm."""

import numpy as np
import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from ehm.backends.torch.engine.optim import (
    copy_optimizer_arrays,
    create_lars,
    load_optimizer_arrays,
    make_param_groups,
    set_rates,
)
from ehm.backends.torch.models.vit import build_vit, find_layers
from ehm.config.encoders import VitSpec
from ehm.errors import CheckpointError

TINY = VitSpec((16, 16), 8, width=8, depth=3, heads=2)


def rates(model, **options):
    """(learning rate, weight decay) of each parameter at lr 1 and decay 0.05."""
    optimizer = torch.optim.AdamW(make_param_groups(model.named_parameters(), **options))
    set_rates(optimizer, 1.0, 0.05)
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    return {
        name_of[parameter]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_layer_decay_is_the_published_table():
    model = build_vit(TINY, classes=2)
    found = rates(model, no_decay=model.no_weight_decay(), layer_decay=0.5, layers=find_layers(model))
    # MAE's lr_decay.py with 3 blocks: embedding 0.5^4, block i 0.5^(3 - i), norm and head 1
    expected = {
        "cls_token": (1 / 16, 0),
        "pos_embed": (1 / 16, 0),
        "patch_embed.proj.weight": (1 / 16, 0.05),
        "patch_embed.proj.bias": (1 / 16, 0),
        "blocks.0.attn.qkv.weight": (1 / 8, 0.05),
        "blocks.0.norm1.weight": (1 / 8, 0),
        "blocks.1.mlp.fc1.weight": (1 / 4, 0.05),
        "blocks.2.mlp.fc2.bias": (1 / 2, 0),
        "blocks.2.mlp.fc2.weight": (1 / 2, 0.05),
        "fc_norm.weight": (1, 0),
        "head.weight": (1, 0.05),
        "head.bias": (1, 0),
    }
    np.testing.assert_allclose([found[name] for name in expected], list(expected.values()))
    assert found.keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("layer_decay", [0.65, 0.75, 1.0])
def test_every_parameter_has_timms_rate(layer_decay):
    model = build_vit(TINY, classes=2)
    skip = model.no_weight_decay()
    found = rates(model, no_decay=skip, layer_decay=layer_decay, layers=find_layers(model))
    groups = param_groups_layer_decay(model, 0.05, no_weight_decay_list=skip, layer_decay=layer_decay)
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    theirs = {name_of[p]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found.keys() == theirs.keys()
    np.testing.assert_allclose([found[name] for name in theirs], list(theirs.values()))


def test_without_layers_all_learn_alike_and_vectors_do_not_decay():
    model = build_vit(TINY)
    model.blocks[0].requires_grad_(False)
    found = rates(model)
    assert {lr for lr, _ in found.values()} == {1.0}
    assert all((decay > 0) == (dict(model.named_parameters())[name].ndim > 1) for name, (_, decay) in found.items())
    assert not any(name.startswith("blocks.0.") for name in found)


SIZES = {"matrix": (3, 2), "vector": (3,), "zero": (2, 2), "token": (1, 1, 2)}


def lars_model():
    generator = torch.Generator().manual_seed(0)
    values = {name: torch.randn(size, generator=generator) for name, size in SIZES.items()}
    values["zero"].zero_()
    return nn.ParameterDict({name: nn.Parameter(value.clone()) for name, value in values.items()}), values


def gradients_of(steps):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        yield {name: torch.randn(size, generator=generator) for name, size in SIZES.items()}


def test_lars_without_weight_decay_is_maes_to_the_last_bit():
    """MAE's util/lars.py, written out. A token is a matrix there too, though it does not decay."""
    model, values = lars_model()
    optimizer = create_lars(make_param_groups(model.named_parameters(), no_decay=("token",)), lr=0.5)
    set_rates(optimizer, lr=2.0, weight_decay=0.0)
    momentum = {name: torch.zeros_like(value) for name, value in values.items()}
    for gradients in gradients_of(20):
        for name, gradient in gradients.items():
            model[name].grad = gradient.clone()
        optimizer.step()
        for name, gradient in gradients.items():
            update = gradient
            if gradient.ndim > 1:
                weight_norm, update_norm = values[name].norm(), update.norm()
                if weight_norm > 0 and update_norm > 0:
                    update = update * (0.001 * weight_norm / update_norm)
            momentum[name].mul_(0.9).add_(update)
            values[name].add_(momentum[name], alpha=-2.0)
            assert torch.equal(model[name], values[name]), name


def test_lars_with_weight_decay_is_the_papers():
    model, values = lars_model()
    optimizer = create_lars(make_param_groups(model.named_parameters(), no_decay=("token",)), lr=0.5)
    set_rates(optimizer, lr=2.0, weight_decay=0.1)
    values = {name: value.double().numpy() for name, value in values.items()}
    momentum = dict.fromkeys(values, 0)
    for gradients in gradients_of(5):
        for name, gradient in gradients.items():
            model[name].grad = gradient.clone()
        optimizer.step()
        for name, gradient in gradients.items():
            decay = 0.1 if name in ("matrix", "zero") else 0
            update = gradient.double().numpy()
            lengths = np.linalg.norm(values[name]), np.linalg.norm(update)
            if update.ndim > 1:
                update = update + decay * values[name]
                if lengths[0] > 0:  # a matrix of zeros takes the plain gradient at first
                    update = update * (0.001 * lengths[0] / (lengths[1] + decay * lengths[0]))
            momentum[name] = 0.9 * momentum[name] + update
            values[name] = values[name] - 2.0 * momentum[name]
            np.testing.assert_allclose(model[name].detach().numpy(), values[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [torch.optim.AdamW, lambda groups: create_lars(groups, lr=0.1)])
def test_a_restored_optimiser_goes_on_bit_for_bit(make):
    def steps(model, optimizer, count, seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            optimizer.zero_grad()
            model(torch.randn(4, 3, generator=generator)).square().mean().backward()
            optimizer.step()

    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = make(make_param_groups(model.named_parameters()))
    set_rates(optimizer, 0.1, 0.05)
    steps(model, optimizer, 2, seed=1)
    other = nn.Linear(3, 2)
    other.load_state_dict(model.state_dict())
    restored = make(make_param_groups(other.named_parameters()))
    set_rates(restored, 0.1, 0.05)
    arrays = copy_optimizer_arrays(optimizer, model.named_parameters())
    load_optimizer_arrays(restored, other.named_parameters(), arrays)
    steps(model, optimizer, 3, seed=2)
    steps(other, restored, 3, seed=2)
    assert torch.equal(model.weight, other.weight)
    assert torch.equal(model.bias, other.bias)


def test_a_state_that_does_not_fit_is_named():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(make_param_groups(model.named_parameters()))
    with pytest.raises(CheckpointError, match="head/exp_avg belongs to no parameter"):
        load_optimizer_arrays(optimizer, model.named_parameters(), {"head/exp_avg": np.zeros(2)})
    with pytest.raises(CheckpointError, match=r"weight/exp_avg is \(3, 3\), not \(2, 3\)"):
        load_optimizer_arrays(optimizer, model.named_parameters(), {"weight/exp_avg": np.zeros((3, 3))})
