"""Pretraining that begins with other people's weights takes their encoder, and keeps it when it is resumed."""

import numpy as np
import pytest
import timm
import torch

from ehm.config import TrainConfig
from ehm.config.encoders import EVA_ROTARY
from ehm.errors import CheckpointError, ConfigError
from ehm.models.encoder_file import read_facts
from ehm.storage.arrays import Arrays
from ehm.storage.checkpoint import open_checkpoint
from ehm.training.pretrain import train

SETTINGS = (
    "objective=mae", "image_size=40", "mask.blocks=2", "model.decoder_width=32", "model.decoder_depth=1",
    "model.decoder_heads=2", "optim.steps=2", "optim.warmup_steps=1", "optim.batch_size=4", "optim.base_lr=1e-9",
    "run.trackers=[]", "data.workers=1",
)  # fmt: skip
NETWORKS = {
    "registers": ("vit_small_patch14_reg4_dinov2", {}, "a ViT with registers 4, no prefix positions, layer scale"),
    "rotary": ("vit_small_patch16_dinov3", {}, "rotary positions (dinov3)"),
    "clip": ("vit_base_patch16_clip_quickgelu_224", {}, "norm before, mlp quick_gelu"),
}


@pytest.fixture
def written(tmp_path):
    """Write the tensors of a small random network of timm's; gives the file and the network."""

    def write(architecture, **options):
        torch.manual_seed(0)
        sizes = {"depth": 2, "embed_dim": 48, "num_heads": 3, "num_classes": 0, **options}
        network = timm.create_model(architecture, **sizes).eval()
        torch.save(network.state_dict(), tmp_path / "weights.pth")
        return str(tmp_path / "weights.pth"), network

    return write


def overrides(images, init, *more):
    return [*SETTINGS, f"data.source={images}", f"model.init={init}", *more]


def test_a_run_takes_the_encoder_of_its_weights_and_keeps_it(images, written, tmp_path):
    path, network = written("vit_small_patch14_reg4_dinov2", img_size=42)
    out = tmp_path / "run"
    stopped = train(overrides=overrides(images, path, "model.heads=3", "run.max_steps=1"), out=out, device="cpu")
    config = TrainConfig.model_validate(open_checkpoint(stopped.checkpoint).metadata["config"])
    assert config.spec.form.registers == 4
    assert config.spec.image_size == (42, 42)
    assert not config.awaits_encoder
    # the weights are not needed any more
    (tmp_path / "weights.pth").unlink()
    ended = train(overrides=["run.max_steps=null"], out=out, resume=True, device="cpu")
    assert ended.encoder is not None
    assert read_facts(ended.encoder).spec == config.spec
    found: Arrays = open_checkpoint(ended.checkpoint).model
    for name, value in network.state_dict().items():
        # the rate is next to nothing, so that every parameter is still what it was
        np.testing.assert_allclose(found[name], value.numpy(), atol=1e-5, err_msg=name)


def test_a_frozen_teacher_of_timms_is_the_same_when_the_run_goes_on(images, tmp_path):
    init = "timm:vit_tiny_patch16_224?pretrained=false"
    features = ["objective=feature", "model.teacher=start", "mask.source=teacher", "optim.ema_decay=null"]
    settings = overrides(images, init, *features, "run.max_steps=1", "image_size=32")
    out = tmp_path / "run"
    train(overrides=settings, out=out, device="cpu")
    ended = train(overrides=["run.max_steps=null"], out=out, resume=True, device="cpu")
    assert ended.steps == 2


@pytest.mark.parametrize("objective", ["mae", "simmim"])
@pytest.mark.parametrize("name", NETWORKS)
def test_published_forms_are_pretrained_by_their_names(name, objective, images, tmp_path, capsys):
    architecture, _, description = NETWORKS[name]
    out = tmp_path / name
    init = f"timm:{architecture}?pretrained=false"
    small = f"objective={objective}"
    with pytest.MonkeyPatch.context() as patch:
        original = timm.create_model
        sizes = {"depth": 2, "embed_dim": 48, "num_heads": 3}
        patch.setattr(timm, "create_model", lambda *names, **options: original(*names, **{**options, **sizes}))
        result = train(overrides=overrides(images, init, small, "mask.unit=null"), out=out, device="cpu")
    config = TrainConfig.model_validate(open_checkpoint(result.checkpoint).metadata["config"])
    assert description in config.spec.description
    said = capsys.readouterr().out
    assert f"begins with the weights of {init}" in said
    assert "pixels normalised as for the weights" in said
    if name == "clip":
        assert config.data.mean == (0.48145466, 0.4578275, 0.40821073)


def test_what_cannot_be_begun_with_is_one_sentence(images, written, tmp_path):
    resnet = "timm:resnet10t?pretrained=false"
    with pytest.raises(CheckpointError, match=r"resnet10t is no encoder that ehm pretrains; docs/weights.md lists"):
        train(overrides=overrides(images, resnet), out=tmp_path / "a", device="cpu")
    path, _ = written("vit_small_patch14_reg4_dinov2", img_size=42)
    given = overrides(images, path, "encoder=vit_tiny", "patch_size=14", "image_size=42", "model.heads=3")
    with pytest.raises(CheckpointError, match=r"holds a ViT with registers 4.*, and the run's encoder is a plain ViT"):
        train(overrides=given, out=tmp_path / "b", device="cpu")
    with pytest.raises(ConfigError, match=r"weights.pth has a ViT with .*: mask.unit 20 should be a multiple of"):
        train(overrides=overrides(images, path, "mask.unit=20", "model.heads=3"), out=tmp_path / "c", device="cpu")
    with pytest.raises(CheckpointError, match=r"give the number of heads as model\.heads"):
        train(overrides=overrides(images, path), out=tmp_path / "d", device="cpu")


def test_the_names_of_a_file_tell_eva_and_its_positions_are_said_to_be_assumed(images, written, tmp_path, capsys):
    path, _ = written("eva02_base_patch14_224", img_size=42)
    result = train(overrides=overrides(images, path, "model.heads=3"), out=tmp_path / "run", device="cpu")
    config = TrainConfig.model_validate(open_checkpoint(result.checkpoint).metadata["config"])
    assert config.spec.form.rotary == EVA_ROTARY
    assert "rotary positions as those of EVA-02 (model.form.rotary)" in capsys.readouterr().out
