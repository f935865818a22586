"""An encoder is loaded whole or refused with the reason, by every command; other families are timm's own classes."""

from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm.layers.mlp import SwiGLU
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

from ehm.backends.torch.export.module import load_module
from ehm.backends.torch.learners.encoder import TorchEncoder
from ehm.backends.torch.learners.pretraining import TorchLearner
from ehm.backends.torch.models.loading import load_model
from ehm.backends.torch.models.torch_file import read_arrays
from ehm.config import ModelSource, TrainConfig
from ehm.errors import CheckpointError
from ehm.models.assembling import assemble_network
from ehm.models.encoder_parts import refuse_unloaded
from ehm.models.opening import open_model

CPU = torch.device("cpu")
NUMBERS = {"img_size": 32, "patch_size": 16, "embed_dim": 192, "depth": 1, "num_heads": 3, "num_classes": 0}


def train(path):
    sizes = {"depth": 1, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2, "init": path}
    return TorchLearner(TrainConfig(encoder="vit_tiny", image_size=32, mask={"blocks": 1}, model=sizes), CPU)


def assemble(path):
    source = ModelSource(init=path)
    return assemble_network(open_model(source, read_arrays), source)


COMMANDS = {
    "train": train,
    "finetune": lambda path: load_model(ModelSource(init=path), classes=3),
    "probe": lambda path: load_model(ModelSource(init=path), 3, "token", fc_norm=False),
    "inspect": lambda path: TorchEncoder(ModelSource(init=path), CPU),
    "export": assemble,
    "export by torch": lambda path: load_module(ModelSource(init=path)),
}
"""The function that opens a file of weights in each command."""

FOREIGN = {
    "blocks.0.attn.rel_pos.mlp.fc1.weight": "relative positions of another form",
    "blocks.0.attn.logit_scale": "cosine attention with computed positions, as in Swin V2",
}
"""Names that tell families which ehm has no encoder of."""
FORMS = {
    "layer scale": {"init_values": 0.1},
    "query norms": {"qk_norm": True},
    "registers": {"reg_tokens": 4, "no_embed_class": True},
    "norm before": {"pre_norm": True, "norm_layer": torch.nn.LayerNorm},  # CLIP's epsilon is 1e-5
    "distilled": {},
    "map": {"global_pool": "map", "class_token": False},
    "gate": {"mlp_layer": SwiGLU, "act_layer": torch.nn.SiLU},
}
"""Arguments of timm's class for ViTs that differ from the plain one."""


@pytest.fixture
def written(tmp_path):
    """Write a model's tensors, and others, and give the file's path."""

    def write(model, **others):
        tensors = {name: value.contiguous() for name, value in model.state_dict().items()} | others
        save_file(tensors, tmp_path / "weights.safetensors")
        return str(tmp_path / "weights.safetensors")

    return write


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", FOREIGN)
def test_an_encoder_that_ehm_does_not_have_is_refused_by_every_command(name, command, written):
    path = written(VisionTransformer(**NUMBERS), **{name: torch.ones(192)})
    with pytest.raises(CheckpointError, match=f"weights.safetensors: its encoder has {FOREIGN[name]}") as error:
        COMMANDS[command](path)
    assert "timm:NAME" in str(error.value)


@torch.inference_mode()
@pytest.mark.parametrize("command", ["inspect", "export by torch"])
@pytest.mark.parametrize("form", FORMS)
def test_a_vit_of_another_form_gives_the_features_of_timms_own(form, command, written):
    torch.manual_seed(0)
    kind = VisionTransformerDistilled if form == "distilled" else VisionTransformer
    model = kind(**NUMBERS, **FORMS[form]).eval()
    for parameter in model.parameters():
        # what begins with zeros or ones would not be missed
        torch.nn.init.normal_(parameter, std=0.1)
    opened = COMMANDS[command](written(model))
    images = torch.randn(2, 3, 32, 32)
    tokens = model.forward_features(images)
    torch.testing.assert_close(opened.model.eval().forward_features(images), tokens)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_second_norm_is_refused(command, written):
    model = VisionTransformer(**NUMBERS, global_pool="avg", fc_norm=True)
    path = written(model, **{"norm.weight": torch.ones(192), "norm.bias": torch.ones(192)})
    with pytest.raises(CheckpointError, match="its encoder has a norm before the pooling and another after it"):
        COMMANDS[command](path)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["blocks.0.gamma_3", "patch_embed.more.weight", "text_encoder.weight"])
def test_a_part_that_nobody_knows_is_refused_by_its_name(command, name, written):
    path = written(VisionTransformer(**NUMBERS), **{name: torch.ones(192)})
    with pytest.raises(CheckpointError, match=f"{name} would be left out, and only heads and decoders may be"):
        COMMANDS[command](path)


@torch.inference_mode()
def test_heads_and_decoders_are_left_by_name(written):
    torch.manual_seed(0)
    model = VisionTransformer(**NUMBERS, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6)).eval()
    beside = ["head.weight", "head_dist.bias", "pre_logits.fc.weight", "lm_head.weight", "mask_token"]
    path = written(model, **{name: torch.ones(7) for name in [*beside, "decoder_blocks.0.attn.q_norm.bias"]})
    for command in ("train", "finetune", "inspect"):
        opened = COMMANDS[command](path)
        (left,) = (note for note in opened.notes if note.startswith("not used from there: "))
        for name in ("pre_logits", "head_dist"):
            assert name in left
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    normalised = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 * 2 - 1  # lm_head: BEiT's mean and std
    expected = model.forward_features(normalised)[:, 1:].mean(1)
    torch.testing.assert_close(torch.from_numpy(COMMANDS["inspect"](path).compute_features(pixels)), expected)


def test_the_last_norm_may_give_way_to_one_behind_the_pooling_and_a_networks_own_head_has_its_name():
    refuse_unloaded(["norm.weight", "fc.weight"], ["fc_norm.weight"], "FILE", head="fc")
    with pytest.raises(CheckpointError, match=r"^FILE: fc\.weight and 1 more would be left out"):
        refuse_unloaded(["fc.weight", "norm1.bias"], [], "FILE")
