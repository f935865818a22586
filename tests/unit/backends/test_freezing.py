"""Frozen first blocks: which parameters stay, bit for bit, and which move, in every objective and task."""

import pytest
from tiny_learners import TASKS, assert_only_these_stay, assert_same_state, pretraining, take_steps, task_learner

from ehm.errors import ConfigError

EMBEDDING = ("patch_embed.", "cls_token", "pos_embed", "rel_pos_bias.")
PRETRAINING = {
    "mae": (1, (*EMBEDDING, "blocks.0.", "decoder_pos_embed")),
    "simmim": (2, (*EMBEDDING, "blocks.0.", "blocks.1.")),
    # stages of 2, 1 and 1 blocks; what merges the tokens of two stages comes before the second one's first block
    "swin": (3, ("patch_embed.", "layers.0.", "layers.1.")),
}
"""Number of frozen blocks, and the beginnings of the names of all parameters that stay."""


@pytest.mark.parametrize("kind", PRETRAINING)
def test_first_blocks_stay_in_pretraining_and_all_else_learns(kind):
    count, stay = PRETRAINING[kind]
    learner = pretraining(kind, model={"freeze": count}, optim={"ema_decay": 0.5})
    before = learner.state()
    after = take_steps(learner, 2).state()
    assert_only_these_stay(before.model, after.model, lambda name: name.startswith(stay))
    averages = {name: array for name, array in after.optimizer.items() if name.startswith("ema/")}
    assert_only_these_stay(before.optimizer, averages, lambda name: name.removeprefix("ema/").startswith(stay))
    moments = {name.rpartition("/")[0] for name in after.optimizer if name.endswith("/exp_avg")}
    assert moments == {name for name in after.model if not name.startswith(stay)}


@pytest.mark.parametrize("kind", PRETRAINING)
def test_a_frozen_run_goes_on_bit_for_bit_and_may_compute_activations_again(kind):
    settings = {"model": {"freeze": PRETRAINING[kind][0]}, "optim": {"ema_decay": 0.5}}
    whole = take_steps(pretraining(kind, **settings), 4).state()
    first = take_steps(pretraining(kind, **settings), 2)
    resumed = pretraining(kind, **settings, run={"seed": 1})  # other weights, until it loads those of the first
    resumed.load(first.state())
    assert_same_state(take_steps(resumed, 2).state(), whole)
    again = take_steps(pretraining(kind, **settings, run={"grad_checkpointing": True}), 4).state()
    assert_same_state(again, whole)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("encoder", ["vit", "swin"])
@pytest.mark.parametrize("task", TASKS)
def test_first_blocks_stay_in_every_task_and_all_else_learns(task, encoder, checkpointing):
    settings = {"layer_decay": 0.9, "run": {"grad_checkpointing": checkpointing}}
    stays = {"vit": (*EMBEDDING, "blocks.0."), "swin": ("patch_embed.", "layers.0.")}[encoder]
    learner = task_learner(task, encoder, model={"freeze": 1}, **settings)
    before = learner.state().model
    state = take_steps(learner, 2).state()

    def frozen(name):
        inner = name.rpartition("encoder.")[2]
        # a last norm that a pyramid does not use learns in no run
        unused = inner.startswith(("norm.", "fc_norm.")) and task in ("segmentation", "detection")
        return inner.startswith(stays) or unused

    batch_norms = ("running_mean", "running_var", "num_batches_tracked")
    after = {name: array for name, array in state.model.items() if not name.endswith(batch_norms)}
    assert_only_these_stay(before, after, frozen)
    assert any(frozen(name) for name in before)
    assert not any(frozen(name.rpartition("/")[0]) for name in state.optimizer)
    (said,) = [note for note in learner.notes if "parameters learn" in note]
    learning = sum(before[name].size for name in {name.rpartition("/")[0] for name in state.optimizer} & before.keys())
    assert said.startswith(f"{learning:,} of ")


def test_no_network_is_frozen_beyond_its_blocks():
    with pytest.raises(ValueError, match=r"model\.freeze 4: vit_tiny has 3 blocks"):
        pretraining("mae", model={"freeze": 4})
    with pytest.raises(ConfigError, match=r"model\.freeze 4: this encoder \(VisionTransformer\) has 3 blocks"):
        task_learner("classification", model={"freeze": 4})
    resnet = {"init": "timm:resnet10t?pretrained=false", "freeze": 1, "width": None, "depth": None, "heads": None}
    with pytest.raises(ConfigError, match=r"model\.freeze 1: this encoder \(ResNet\) has 0 blocks"):
        task_learner("classification", model=resnet)
    with pytest.raises(ValueError, match=r"model\.freeze: the whole encoder stays as it is"):
        task_learner("classification", model={"freeze": 1}, frozen=True)
