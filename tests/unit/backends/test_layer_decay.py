"""Layer-wise learning rates in pretraining, seen from the lengths of a step, against timm's for the encoder alone."""

import numpy as np
import pytest
from timm.models.beit import Beit
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay
from tiny_learners import pretraining, take_step

LR = 0.01
DECAY = 0.5
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 2}
TIMMS = {
    "mae": lambda: VisionTransformer(**VIT),
    "simmim": lambda: Beit(
        **VIT, use_abs_pos_emb=False, init_values=0.1, use_shared_rel_pos_bias=True, global_pool="token"
    ),
    "swin": lambda: SwinTransformer(32, 2, embed_dim=16, depths=(2, 1, 1), num_heads=(1, 2, 2), window_size=4),
}
HEADS = ("decoder", "mask_token")


def step_lengths(learner):
    """The largest change of each parameter in AdamW's first step, which is its learning rate."""
    before = learner.state().model
    take_step(learner, LR, 0.0)
    after = learner.state().model
    return {name: np.abs(after[name] - before[name]).max() for name in before}


@pytest.mark.parametrize("kind", TIMMS)
def test_layers_of_the_encoder_learn_at_timms_rates_and_all_above_it_at_the_full_one(kind):
    encoder = TIMMS[kind]()
    groups = param_groups_layer_decay(encoder, layer_decay=DECAY)
    name_of = {parameter: name for name, parameter in encoder.named_parameters()}
    expected = {name_of[p]: LR * group["lr_scale"] for group in groups for p in group["params"]}
    found = step_lengths(pretraining(kind, layer_decay=DECAY))
    if kind == "mae":  # its positions are fixed
        assert found.pop("pos_embed") == 0
        assert found.pop("decoder_pos_embed") == 0
    for name, length in found.items():
        # a little shorter where gradients are as small as AdamW's epsilon; layers differ by a factor of two
        rate = LR if name.startswith(HEADS) else expected[name]
        assert length == pytest.approx(rate, rel=0.1), name
    assert min(found[name] for name in found if name.startswith("patch_embed")) < LR * DECAY**3


def test_without_it_all_layers_learn_alike():
    found = step_lengths(pretraining("mae"))
    assert {round(float(length) / LR, 2) for length in found.values() if length} == {1.0}
