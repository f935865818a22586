"""Low-rank updates: what learns, what they compute against peft's own merge, and what others see of them: nothing."""

import copy
import sys

import numpy as np
import peft
import pytest
import timm
import torch
from timm.models.eva import Eva
from tiny_learners import (
    PRETRAINING,
    TASKS,
    assert_only_these_stay,
    assert_same_state,
    pretraining,
    pretraining_config,
    take_step,
    take_steps,
    task_learner,
)

from ehm.backends.torch.learners.encoder import TorchEncoder
from ehm.backends.torch.models.adapters import merge_arrays
from ehm.backends.torch.models.tuning import restrict_learning
from ehm.config import LoraConfig, ModelSource
from ehm.errors import BackendError, CheckpointError, ConfigError
from ehm.storage.arrays import LearnerState
from ehm.storage.checkpoint import save_checkpoint

LORA = {"rank": 2, "alpha": 8.0, "targets": ["attn.qkv", "attn.proj", "mlp"]}
LAYERS = {
    "attn.qkv": ("attn.qkv.weight",),
    "attn.proj": ("attn.proj.weight",),
    "mlp": ("mlp.fc1.weight", "mlp.fc2.weight"),
}
ALL_LAYERS = tuple(layer for layers in LAYERS.values() for layer in layers)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A run of each of ``PRETRAINING``, whose weights have moved a little."""
    runs = {}
    for kind in PRETRAINING:
        state = take_steps(pretraining(kind), 2).state()
        meta = {"kind": "pretrain", "step": 2, "config": pretraining_config(kind).model_dump(mode="json")}
        runs[kind] = str(save_checkpoint(tmp_path_factory.mktemp(kind), state, meta))
    return runs


@pytest.fixture
def adapting(weights):
    """Make a learner that goes on from the weights of its kind with an update, for an objective or a task."""

    def make(kind, task=None, lora=None, model=None, **sections):
        settings = {"lora": {**LORA, **(lora or {})}, "model": {"init": weights[kind], **(model or {})}}
        if task is not None:
            return task_learner(task, **settings, **sections)
        return pretraining(kind, **settings, **sections)

    return make


def move_updates(learner):
    """Let the updates of a learner be anything but zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in learner.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return learner


def save_run(folder, kind, learner):
    meta = {"kind": "pretrain", "step": 1, "config": pretraining_config(kind).model_dump(mode="json")}
    return str(save_checkpoint(folder, learner.state(), meta))


def merge_by_peft(model):
    """Return a copy of ``model`` with each of peft's layers merged by peft itself, and replaced by the plain one."""
    merged = copy.deepcopy(model)
    for name, module in list(merged.named_modules()):
        if isinstance(module, peft.tuners.lora.Linear):
            module.merge()
            merged.set_submodule(name, module.get_base_layer())
    return merged


def look(learner):
    images = np.random.default_rng(3).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    return images, np.concatenate(list(learner.prepare_batch(images).compute_similarity()))


@pytest.mark.parametrize("targets", [["attn.qkv"], ["attn.proj"], ["mlp"]])
@pytest.mark.parametrize("kind", PRETRAINING)
def test_only_what_is_asked_for_learns_and_what_predicts(adapting, kind, targets):
    learner = adapting(kind, lora={"targets": targets})
    before = learner.state().model
    after = take_steps(learner, 2).state().model
    moved = [name for name in after if not np.array_equal(before[name], after[name])]
    predicting = [name for name in after if name.startswith(("decoder", "mask_token")) and "pos_embed" not in name]
    adapted = [name for name in after if name.endswith(LAYERS[targets[0]]) and not name.startswith("decoder")]
    assert sorted(moved) == sorted(predicting + adapted)
    assert max(np.linalg.matrix_rank(after[name] - before[name], tol=1e-5) for name in adapted) == 2


@pytest.mark.parametrize("encoder", ["mae", "simmim"])
@pytest.mark.parametrize("task", TASKS)
def test_heads_and_updates_learn_in_every_task_and_norms_if_they_shall(adapting, task, encoder):
    learner = adapting(encoder, task, lora={"norms": True})
    before = learner.state().model
    state = take_steps(learner, 2).state()
    inside = {name: name.rpartition("encoder.")[2] for name in before}
    if task == "classification":
        inside = {name: "" if name.startswith(("head.", "fc_norm.")) else name for name in before}
    unused = ("norm.", "fc_norm.") if task in ("segmentation", "detection") else ()

    def stays(name):
        inner = inside[name]
        outside = inner == "" or (task != "classification" and inner == name)
        learns = outside or inner.endswith(ALL_LAYERS) or "norm" in inner
        return not learns or inner.startswith(unused)

    batch_norms = ("running_mean", "running_var", "num_batches_tracked")
    after = {name: array for name, array in state.model.items() if not name.endswith(batch_norms)}
    assert_only_these_stay(before, after, stays)


@pytest.mark.parametrize("kind", PRETRAINING)
def test_others_see_a_plain_network_that_computes_the_same(adapting, kind, tmp_path):
    learner = move_updates(adapting(kind))
    merged = merge_by_peft(learner.model).state_dict()
    arrays = learner.state().model
    assert arrays.keys() == merged.keys() == pretraining(kind).state().model.keys()
    for name, value in merged.items():
        np.testing.assert_allclose(arrays[name], value.numpy(), atol=1e-6, err_msg=name)

    images, similarity = look(learner)
    encoder = TorchEncoder(ModelSource(init=save_run(tmp_path, kind, learner)), torch.device("cpu"))
    plain = pretraining(kind)
    plain.load(LearnerState(arrays, {}))
    np.testing.assert_allclose(similarity, look(plain)[1], atol=1e-6)
    if kind != "swin":  # the masks' units are four cells of it
        np.testing.assert_allclose(similarity, encoder.compute_similarity(images, 2), atol=1e-6)
    unadapted = look(adapting(kind))[1]
    assert np.abs(similarity - unadapted).max() > 1e-4
    assert float(take_step(learner)["loss"]) == pytest.approx(float(take_step(plain)["loss"]), rel=1e-5)


def test_steps_are_those_of_peft_on_timms_network(adapting):
    learner = adapting("mae", "classification", layer_decay=1.0)
    plain = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=3,
        num_heads=3,
        num_classes=2,
        global_pool="avg",
    )
    plain.load_state_dict({name: torch.from_numpy(array) for name, array in learner.state().model.items()})
    settings = {"r": 2, "lora_alpha": 8, "target_modules": ["qkv", "proj", "fc1", "fc2"]}
    settings |= {"exclude_modules": ["patch_embed.proj"], "modules_to_save": ["head", "fc_norm"]}
    model = peft.get_peft_model(plain, peft.LoraConfig(**settings))
    ours = dict(learner.model.named_parameters())
    with torch.no_grad():
        for name, parameter in model.base_model.model.named_parameters():
            if "lora_" in name:
                parameter.copy_(ours[name])
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in learning if parameter.ndim > 1]
    others = [parameter for parameter in learning if parameter.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.999))
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
    targets = torch.from_numpy(rng.dirichlet(np.ones(2), 4).astype(np.float32))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((images / 255 - mean) / std).permute(0, 3, 1, 2)
    for _ in range(3):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(pixels), targets)
        loss.backward()
        optimizer.step()
        assert float(take_step(learner)["loss"]) == pytest.approx(loss.item(), rel=1e-4)
    theirs = model.merge_and_unload().state_dict()
    arrays = learner.state().model
    assert arrays.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(arrays[name], value.numpy(), atol=1e-3, err_msg=name)


@pytest.mark.parametrize("kind", PRETRAINING)
def test_a_run_goes_on_bit_for_bit_with_its_updates_its_dropout_and_its_average(adapting, kind):
    settings = {"lora": {"dropout": 0.3}, "model": {"freeze": 1}, "optim": {"ema_decay": 0.5}}
    whole = take_steps(adapting(kind, **settings), 4).state()
    first = take_steps(adapting(kind, **settings), 2)
    resumed = move_updates(adapting(kind, **settings))
    resumed.load(first.state())
    assert_same_state(take_steps(resumed, 2).state(), whole)
    again = take_steps(adapting(kind, **settings, run={"grad_checkpointing": True}), 4).state()
    assert_same_state(again, whole)
    assert not any("lora" in name for name in whole.model)
    assert not any("lora" in name for name in whole.optimizer if name.startswith("ema/"))
    frozen = "layers.0.blocks.0." if kind == "swin" else "blocks.0."
    assert not any(frozen in name for name in whole.optimizer if name.startswith("lora"))


def test_a_task_goes_on_bit_for_bit(adapting):
    settings = {"lora": {"dropout": 0.3}, "layer_decay": 0.8}
    whole = take_steps(adapting("mae", "segmentation", **settings), 4).state()
    first = take_steps(adapting("mae", "segmentation", **settings), 2)
    resumed = move_updates(adapting("mae", "segmentation", **settings))
    resumed.load(first.state())
    assert_same_state(take_steps(resumed, 2).state(), whole)


def test_an_average_is_that_of_the_updates(adapting):
    learner = adapting("mae", optim={"ema_decay": 0.5})
    take_step(learner)
    first = learner.state().optimizer["lora/blocks.1.attn.qkv/A"]
    take_step(learner)
    state = learner.state()
    start = adapting("mae").state().optimizer["lora/blocks.1.attn.qkv/A"]
    expected = 0.25 * start + 0.25 * first + 0.5 * state.optimizer["lora/blocks.1.attn.qkv/A"]
    np.testing.assert_allclose(state.optimizer["lora_ema/blocks.1.attn.qkv/A"], expected, atol=1e-6)
    weight, a, b = (state.optimizer[f"lora_ema/blocks.1.attn.qkv/{part}"] for part in ("weight", "A", "B"))
    merged = weight + 8 / 2 * b.astype(np.float64) @ a
    np.testing.assert_allclose(state.optimizer["ema/blocks.1.attn.qkv.weight"], merged, atol=1e-6)


def test_a_frozen_teacher_has_no_update(adapting):
    images = np.random.default_rng(3).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    plain = adapting("mae", objective="feature", lora={"rank": None})
    expected = plain._objective.compute_targets(plain._pixels(images))["features"]
    learner = move_updates(adapting("mae", objective="feature"))
    take_step(learner)
    assert torch.equal(learner._objective.compute_targets(learner._pixels(images))["features"], expected)


@pytest.mark.parametrize("options", [{"swiglu_mlp": True}, {"qkv_fused": False}, {"scale_mlp": True}])
def test_networks_with_rotary_positions_and_biases_of_their_own_have_updates_too(options):
    """timm's Eva adds a bias of queries and values past the layer, and has a layer for each of them otherwise."""
    network = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 3}
    network |= {"use_rot_pos_emb": True, **options}
    torch.manual_seed(0)
    model = Eva(**network)
    pixels = torch.randn(2, 3, 32, 32)
    before = model.eval().forward_features(pixels)
    restrict_learning(model, model, 0, LoraConfig(**LORA), seed=0)
    names = [name for name, module in model.named_modules() if isinstance(module, peft.tuners.lora.Linear)]
    assert len(names) == 2 * sum(isinstance(module, torch.nn.Linear) for module in Eva(**network).blocks[0].modules())
    torch.testing.assert_close(model.forward_features(pixels), before)  # zero at first
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    plain = Eva(**network)
    plain.load_state_dict({name: torch.from_numpy(array) for name, array in merge_arrays(model).items()})
    adapted = model.forward_features(pixels)
    torch.testing.assert_close(adapted, plain.eval().forward_features(pixels), atol=1e-5, rtol=1e-4)
    assert (adapted - before).abs().max() > 1e-2


def test_bfloat16_computes_with_the_update_on_every_processor(adapting, monkeypatch):
    """A processor that multiplies bfloat16 takes attention apart in training."""
    monkeypatch.setattr("ehm.backends.torch.models.attention.UNFUSED", {("cpu", torch.bfloat16)})
    learner = move_updates(adapting("mae", optim={"dtype": "bfloat16"}))
    exact = move_updates(adapting("mae"))
    plain = adapting("mae")
    loss, expected, other = (float(take_step(each)["loss"]) for each in (learner, exact, plain))
    assert abs(loss - expected) < 0.2 * abs(other - expected)


def test_what_cannot_have_updates_is_said(adapting, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"lora\.rank 2: an update needs trained weights below it; set model\.init"):
        pretraining("mae", lora=LORA)
    with pytest.raises(ValueError, match=r"lora\.rank 2: an update needs trained weights below it; set model\.init"):
        task_learner("detection", lora=LORA)
    with pytest.raises(ValueError, match=r"lora\.rank: the encoder stays as it is"):
        adapting("mae", "classification", frozen=True)
    with pytest.raises(ConfigError, match=r"lora\.rank 2: this encoder .* has 3 blocks, and none of them learns"):
        adapting("mae", model={"freeze": 3})
    resnet = {"init": "timm:resnet10t?pretrained=false", "width": None, "depth": None, "heads": None}
    with pytest.raises(ConfigError, match=r"this encoder \(ResNet\) has 0 blocks"):
        adapting("mae", "classification", model=resnet)
    other_rank = adapting("mae", lora={"rank": 3})
    with pytest.raises(CheckpointError, match=r"blocks\.0\.attn\.proj/A is \(2, 24\), not \(3, 24\)"):
        other_rank.load(adapting("mae").state())
    monkeypatch.setitem(sys.modules, "peft", None)  # as if it were not there
    with pytest.raises(BackendError, match=r"lora\.rank: peft is not installed; pip install .*\[lora\]'"):
        adapting("mae")
    (tmp_path / "peft.py").write_text("import a_library_of_peft")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "peft")
    with pytest.raises(BackendError, match=r"lora\.rank: peft cannot be imported: .*a_library_of_peft"):
        adapting("mae")
