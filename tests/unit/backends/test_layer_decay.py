"""Layer-wise learning rates in pretraining, seen from the lengths of a step, against timm's for the encoder alone."""

import numpy as np
import pytest
import torch
from timm.models.beit import Beit
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay

from ehm.backends.torch.learners.pretraining import TorchLearner
from ehm.config import TrainConfig

CPU = torch.device("cpu")
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
SIZES = {
    "mae": {"width": 24, "depth": 3, "heads": 3, "decoder_width": 16, "decoder_depth": 2, "decoder_heads": 2},
    "simmim": {"width": 24, "depth": 3, "heads": 3, "drop_path": 0},
    "swin": {"width": 16, "depth": [2, 1, 1], "heads": [1, 2, 2]},
}
HEADS = ("decoder", "mask_token")


def make(kind, layer_decay):
    swin = kind == "swin"
    values = {
        "objective": "mae" if kind == "mae" else "simmim",
        "encoder": "swin_tiny" if swin else "vit_tiny",
        "image_size": 32,
        "patch_size": 2 if swin else 8,
        "model": SIZES[kind],
        "mask": {"unit": 8, "ratio": 0.5},
        "optim": {"batch_size": 4, "epochs": 1, "warmup_epochs": 0, "dtype": "float32"},
        "layer_decay": layer_decay,
    }
    return TorchLearner(TrainConfig.model_validate(values), CPU)


def step_lengths(learner):
    """The largest change of each parameter in AdamW's first step, which is its learning rate."""
    rng = np.random.default_rng(0)
    before = learner.state().model
    images = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    mask = np.repeat(rng.permutation(16)[None] < 8, 4, axis=0)
    learner.train_step(learner.prepare_batch(images), mask, LR, 0.0)
    after = learner.state().model
    return {name: np.abs(after[name] - before[name]).max() for name in before}


@pytest.mark.parametrize("kind", TIMMS)
def test_layers_of_the_encoder_learn_at_timms_rates_and_all_above_it_at_the_full_one(kind):
    encoder = TIMMS[kind]()
    groups = param_groups_layer_decay(encoder, layer_decay=DECAY)
    name_of = {parameter: name for name, parameter in encoder.named_parameters()}
    expected = {name_of[p]: LR * group["lr_scale"] for group in groups for p in group["params"]}
    found = step_lengths(make(kind, DECAY))
    if kind == "mae":  # its positions are fixed
        assert found.pop("pos_embed") == 0
        assert found.pop("decoder_pos_embed") == 0
    for name, length in found.items():
        # a little shorter where gradients are as small as AdamW's epsilon; layers differ by a factor of two
        rate = LR if name.startswith(HEADS) else expected[name]
        assert length == pytest.approx(rate, rel=0.1), name
    assert min(found[name] for name in found if name.startswith("patch_embed")) < LR * DECAY**3


def test_without_it_all_layers_learn_alike():
    found = step_lengths(make("mae", 1.0))
    assert {round(float(length) / LR, 2) for length in found.values() if length} == {1.0}
